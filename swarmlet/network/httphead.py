"""When the bytes of a client may be said twice.

A node that loses power takes the requests with it that it had accepted and not yet
answered. For a request that changes nothing, asking another task instead turns a
failure into a short delay; so the proxy looks at the first bytes of a connection,
and only at those, for the one form in which that is certainly allowed.
"""

from __future__ import annotations

REPLAY_BYTES_MAX = 16 * 1024

_IDEMPOTENT = (b"GET ", b"HEAD ", b"OPTIONS ")
_END_OF_HEAD = b"\r\n\r\n"


def is_replayable(sent: bytes | bytearray) -> bool:
    """Whether `sent` is exactly one complete HTTP/1 request without a body that changes nothing.

    The methods are those that RFC 9110 calls safe, but for TRACE.
    """
    if len(sent) > REPLAY_BYTES_MAX or not sent.startswith(_IDEMPOTENT):
        return False
    if sent.find(_END_OF_HEAD) != len(sent) - len(_END_OF_HEAD):
        return False
    lines = bytes(sent).split(b"\r\n")
    if not lines[0].rpartition(b" ")[2].startswith(b"HTTP/1."):
        return False
    return not any(_announces_body(line) for line in lines[1:])


def _announces_body(line: bytes) -> bool:
    name, _, value = line.partition(b":")
    match name.strip().lower():
        case b"transfer-encoding":
            return True
        case b"content-length":
            return value.strip() != b"0"
    return False
