"""The daemon: an agent, and a manager while this node has that role.

Composes the other rooms and owns what belongs to the host: the state directory, the
ports, the local socket. No decision about services or tasks is made here.
"""
