"""What both ends of a gRPC call must agree on beside the messages."""

from __future__ import annotations

LEADER_TRAILER = "swarmlet-leader"
"""On a refusal by a manager that does not lead: the leader's host:port, empty while there is none."""

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
MESSAGE_OPTIONS = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
)
"""For every server and channel: a list of 10,000 tasks is larger than gRPC's own limit of 4 MiB."""
