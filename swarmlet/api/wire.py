"""What both ends of a gRPC call must agree on beside the messages."""

from __future__ import annotations

LEADER_TRAILER = "swarmlet-leader"
"""On a refusal by a manager that does not lead: the leader's host:port, empty while there is none."""

STALE_METADATA = "swarmlet-stale"
"""On a read that a manager may answer from its own state at once, however old that is."""

MAJORITY_LOST_TRAILER = "swarmlet-majority-lost"
"""On an error of a manager that cannot reach enough others for there to be a leader."""

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
MESSAGE_OPTIONS = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
)
"""For every server and channel: a list of 10,000 tasks is larger than gRPC's own limit of 4 MiB."""
