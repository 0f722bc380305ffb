"""What the bootstrap port withstands: garbage, floods, guesses, old TLS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl

import aiohttp
import pytest

from swarmlet.api import errors, pb
from swarmlet.ca.bootstrap import (
    CERTIFICATE_PATH,
    BootstrapServer,
    _FailureLimit,
    join,
)
from tests.unit.ca.bootstrapped import (
    SERVER,
    TOKEN,
    Issuer,
    bootstrap,
    cluster_address,
)


def anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def post(port: int, body: bytes) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session:
        url = f"https://127.0.0.1:{port}{CERTIFICATE_PATH}"
        async with session.post(url, data=body, ssl=anybody()) as response:
            return response.status, await response.text(errors="replace")


async def exchange(port: int, data: bytes, context: ssl.SSLContext | None) -> bytes:
    """Sends bytes and reads until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(data)
    received = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.drain()
        received = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return received


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 5000, b"GET / HTTP/1.1\r\n\r\n", random.Random(4).randbytes(5000)]
)
@pytest.mark.parametrize("is_inside_tls", [False, True])
async def test_garbage_gets_no_certificate_and_no_log_and_the_port_goes_on(
    caplog: pytest.LogCaptureFixture, garbage: bytes, is_inside_tls: bool
) -> None:
    issuer = Issuer()
    async with bootstrap(issuer) as port:
        sent = exchange(port, garbage + b"\r\n\r\n", anybody() if is_inside_tls else None)
        # Some of it is a request that leaves the connection open for another.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(sent, 1)
        assert issuer.requests == []
        assert [r for r in caplog.records if r.levelno >= logging.INFO] == []

        identity, _ = await join(cluster_address(port), TOKEN)

    assert identity.node_id == "n9"


async def test_body_that_is_no_request_is_refused() -> None:
    issuer = Issuer()
    async with bootstrap(issuer) as port:
        status, text = await post(port, b"\xff\xff\xff")

    assert (status, text) == (400, "the request is not an IssueCertificateRequest")
    assert issuer.requests == []


async def test_body_that_is_too_large_is_refused() -> None:
    issuer = Issuer()
    async with bootstrap(issuer) as port:
        status, text = await post(port, b"x" * (64 * 1024 + 1))

    assert (status, text) == (400, "the request is larger than 65536 bytes")
    assert issuer.requests == []


async def test_tls_older_than_1_3_is_refused() -> None:
    context = anybody()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with bootstrap(Issuer()) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def test_guessing_tokens_is_slowed_down_but_the_root_is_still_shown() -> None:
    issuer = Issuer()
    guess = pb.IssueCertificateRequest(token="wrong").SerializeToString()
    async with bootstrap(issuer) as port:
        statuses = [(await post(port, guess))[0] for _ in range(60)]

        with pytest.raises(errors.Unavailable, match=r"too many failed attempts to join from 127\.0\.0\.1"):
            await join(cluster_address(port), TOKEN)

    assert statuses[:10] == [401] * 10
    assert statuses[-1] == 429
    assert len(issuer.requests) < 60


def test_failures_are_forgiven_with_time() -> None:
    limit = _FailureLimit()
    for _ in range(10):
        assert limit.wait_seconds("a", 100.0) == 0
        limit.note("a", 100.0)

    assert limit.wait_seconds("a", 100.0) > 0
    assert limit.wait_seconds("b", 100.0) == 0
    assert limit.wait_seconds("a", 100.0 + limit.wait_seconds("a", 100.0)) == 0


def test_failures_of_endless_addresses_do_not_fill_the_memory() -> None:
    limit = _FailureLimit()

    for n in range(10_000):
        limit.note(str(n), 100.0)

    assert len(limit._failures) <= 4096


async def test_failures_of_the_cluster_do_not_count_against_the_joiner() -> None:
    calls = 0

    async def issue(request: pb.IssueCertificateRequest, peer: str) -> pb.IssueCertificateResponse:
        nonlocal calls
        calls += 1
        raise errors.Unavailable("there is no leader")

    request = pb.IssueCertificateRequest(token=TOKEN).SerializeToString()
    async with bootstrap(issue) as port:
        statuses = [(await post(port, request))[0] for _ in range(20)]

    assert statuses == [503] * 20
    assert calls == 20


async def test_port_that_is_taken_is_a_clear_error() -> None:
    async with bootstrap(Issuer()) as port:
        second = BootstrapServer(lambda: SERVER, Issuer())

        with pytest.raises(
            errors.Unavailable, match=rf"cannot listen on 127\.0\.0\.1:{port} for joining nodes"
        ):
            await second.start("127.0.0.1", port)


async def test_stopping_twice_or_before_the_start_does_nothing() -> None:
    server = BootstrapServer(lambda: SERVER, Issuer())
    await server.stop()
    port = await server.start("127.0.0.1", 0)

    await server.stop()
    await server.stop()

    with pytest.raises(errors.Unavailable, match="cannot connect"):
        await join(cluster_address(port), TOKEN)
