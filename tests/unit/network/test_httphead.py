"""Which first bytes of a connection may be said twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.network.httphead import REPLAY_BYTES_MAX, is_replayable


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
def test_a_complete_head_of_a_safe_method_may_be_repeated(method: bytes) -> None:
    assert is_replayable(method + b" /path?q HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\n",
        b"GET / HTTP/1.1\r\nTRANSFER-ENCODING : chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"GET something else\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * REPLAY_BYTES_MAX + b"\r\n\r\n",
    ],
)
def test_anything_else_may_not(sent: bytes) -> None:
    assert not is_replayable(sent)


@given(st.binary(max_size=200))
def test_bytes_after_the_head_are_a_body_or_another_request(rest: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

    assert is_replayable(head + rest) == (rest == b"")
