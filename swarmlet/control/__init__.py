"""The only door through which users read and change the cluster.

`control.Control` answers on the manager that leads, `forward.ForwardingControl` on
every manager, `absent.AbsentControl` on a daemon that is none; `grpc.ControlServicer`
puts any of them on the wire. Nothing here schedules, runs or connects anything: a
write is one validated transaction in the store.
"""
