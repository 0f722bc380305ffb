"""Which node runs a task.

`scheduler` is the controller, `filters` say which nodes can, `spread` which of those
does, `ledger` what is already on each node. Reads tasks and nodes, writes nothing but
a task's node and status.
"""
