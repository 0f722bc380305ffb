"""A worker: holds a session with the leader and keeps the node's tasks as the cluster wants them.

`Agent` composes a runtime (how a task runs) and a service proxy (how it is reached),
which do not know each other. Without any manager it keeps running what it has.
"""
