"""Joining over real TLS: what a joiner gets, whom it believes, and who never sees its token."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import structlog
from aiohttp import web

from swarmlet.api import errors, pb
from swarmlet.ca import tokens
from swarmlet.ca.bootstrap import (
    CERTIFICATE_PATH,
    ROOT_CERTIFICATE_PATH,
    join,
)
from swarmlet.ca.identity import Identity, new_key_and_csr
from tests.unit.ca.bootstrapped import (
    CLUSTER,
    MANAGER_TOKEN,
    SECRET,
    SERVER,
    TOKEN,
    Issue,
    Issuer,
    bootstrap,
    cluster_address,
)
from tests.unit.ca.builders import CLUSTER_ID, MANAGER, WORKER, Cluster


@pytest.mark.parametrize(("token", "role"), [(TOKEN, WORKER), (MANAGER_TOKEN, MANAGER)])
async def test_joiner_gets_the_identity_that_its_token_is_for(
    token: str, role: pb.NodeRole.ValueType
) -> None:
    issuer = Issuer()
    async with bootstrap(issuer) as port:
        identity, response = await join(
            cluster_address(port),
            f" {token}\n",
            availability=pb.NODE_AVAILABILITY_PAUSE,
            hostname="host-9",
            advertise_address="10.0.0.9",
        )

    assert (identity.node_id, identity.role, identity.cluster_id) == ("n9", role, CLUSTER_ID)
    assert identity.root_pem == CLUSTER.root.certificate_pem
    assert list(response.manager_addresses) == ["127.0.0.1:2377"]
    ((request, peer),) = issuer.requests
    assert (request.hostname, request.advertise_address) == ("host-9", "10.0.0.9")
    assert (request.availability, request.token) == (pb.NODE_AVAILABILITY_PAUSE, token)
    assert peer == "127.0.0.1"


async def test_private_key_stays_with_the_joiner() -> None:
    issuer = Issuer()
    async with bootstrap(issuer) as port:
        await join(cluster_address(port), TOKEN)

    assert b"PRIVATE" not in issuer.requests[0][0].SerializeToString()


async def test_joining_works_with_a_renewed_manager_certificate_without_a_restart() -> None:
    current = [CLUSTER.expired_manager("m1")]
    async with bootstrap(Issuer(), lambda: current[0]) as port:
        with pytest.raises(errors.Unauthenticated, match="certificate has expired"):
            await join(cluster_address(port), TOKEN)
        current[0] = CLUSTER.manager("m1")

        identity, _ = await join(cluster_address(port), TOKEN)

    assert identity.node_id == "n9"


@contextlib.asynccontextmanager
async def impostor(shown: Identity) -> AsyncIterator[tuple[int, bytearray]]:
    """A server that presents root certificates as a manager does and keeps every byte that it is sent."""
    seen = bytearray()
    body = pb.GetRootCertificateResponse(certificate_pem=shown.root_pem).SerializeToString()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                seen.extend(data)
                writer.write(head + body)
                await writer.drain()
        writer.close()

    context = server_context(shown)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], seen


def server_context(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(identity.key_pem + identity.certificate_pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


async def test_man_in_the_middle_with_another_ca_is_found_out_before_the_token_is_sent() -> None:
    other = Cluster()
    async with impostor(other.manager("m1")) as (port, seen):
        with pytest.raises(errors.Unauthenticated) as refused:
            await join(cluster_address(port), TOKEN)

    assert str(refused.value).startswith(
        f"remote CA does not match fingerprint. Expected: {CLUSTER.root.digest()}, got {other.root.digest()}"
    )
    assert ROOT_CERTIFICATE_PATH.encode() in seen
    assert SECRET.encode() not in seen
    assert CERTIFICATE_PATH.encode() not in seen


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(
            dataclasses.replace(Cluster().manager("m1"), root_pem=CLUSTER.root.certificate_pem),
            id="shows the true root with a certificate of its own",
        ),
        pytest.param(CLUSTER.worker("w1"), id="is a worker of the same swarm"),
        pytest.param(CLUSTER.expired_manager("m1"), id="has an expired certificate"),
    ],
)
async def test_token_is_not_sent_to_a_server_that(shown: Identity) -> None:
    async with impostor(shown) as (port, seen):
        with pytest.raises(errors.Unauthenticated, match="the token was not sent"):
            await join(cluster_address(port), TOKEN)

    assert ROOT_CERTIFICATE_PATH.encode() in seen
    assert SECRET.encode() not in seen
    assert CERTIFICATE_PATH.encode() not in seen


async def test_the_impostor_of_these_tests_would_have_seen_the_token() -> None:
    async with impostor(SERVER) as (port, seen):
        with pytest.raises(errors.Unavailable):
            await join(cluster_address(port), TOKEN)

    assert SECRET.encode() in seen


async def other_key(request: pb.IssueCertificateRequest, peer: str) -> pb.IssueCertificateResponse:
    swapped = pb.IssueCertificateRequest(token=request.token, csr_pem=new_key_and_csr()[1])
    return await Issuer()(swapped, peer)


async def other_node(request: pb.IssueCertificateRequest, peer: str) -> pb.IssueCertificateResponse:
    response = await Issuer()(request, peer)
    response.node_id = "n8"
    return response


async def nothing(request: pb.IssueCertificateRequest, peer: str) -> pb.IssueCertificateResponse:
    return pb.IssueCertificateResponse()


@pytest.mark.parametrize(
    ("issue", "reason"),
    [
        (other_key, "does not belong to the certificate"),
        (other_node, "the certificate of another node"),
        (nothing, "is not valid PEM"),
    ],
)
async def test_answer_of_no_use_is_refused(issue: Issue, reason: str) -> None:
    async with bootstrap(issue) as port:
        with pytest.raises(errors.Unavailable, match=reason):
            await join(cluster_address(port), TOKEN)


@pytest.mark.parametrize(
    "kind",
    [
        errors.InvalidArgument,
        errors.Unauthenticated,
        errors.PermissionDenied,
        errors.FailedPrecondition,
        errors.Unavailable,
        errors.UnknownOutcome,
        errors.Conflict,
    ],
)
async def test_what_the_manager_raises_reaches_the_joiner(kind: type[errors.SwarmletError]) -> None:
    async def issue(_request: pb.IssueCertificateRequest, _peer: str) -> pb.IssueCertificateResponse:
        raise kind("because of that")

    async with bootstrap(issue) as port:
        with pytest.raises(kind) as raised:
            await join(cluster_address(port), TOKEN)

    assert str(raised.value) == "because of that"


async def test_defect_in_the_manager_is_an_internal_error_without_the_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def issue(request: pb.IssueCertificateRequest, _peer: str) -> pb.IssueCertificateResponse:
        raise KeyError("a defect")

    with caplog.at_level(logging.DEBUG), structlog.testing.capture_logs() as logs:
        async with bootstrap(issue) as port:
            with pytest.raises(errors.SwarmletError, match="internal error") as raised:
                await join(cluster_address(port), TOKEN)

    assert [entry["event"] for entry in logs] == ["join failed"]
    assert "a defect" in logs[0]["trace"]
    assert SECRET not in str(logs) + caplog.text + everything_about(raised.value)


async def test_token_is_in_no_log_and_no_error_even_if_the_manager_repeats_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stale = tokens.generate(CLUSTER.root.digest(), random.Random(3))
    secret = stale.rpartition("-")[2]

    async def issue(request: pb.IssueCertificateRequest, _peer: str) -> pb.IssueCertificateResponse:
        raise errors.InvalidArgument(f"{request.token} and {secret} are not known")

    async with bootstrap(Issuer()) as good, bootstrap(issue) as repeating:
        with caplog.at_level(logging.DEBUG), structlog.testing.capture_logs() as logs:
            with pytest.raises(errors.Unauthenticated, match="a valid join token is necessary") as refused:
                await join(cluster_address(good), stale)
        with pytest.raises(
            errors.InvalidArgument, match=r"^\(token\) and \(secret\) are not known$"
        ) as repeated:
            await join(cluster_address(repeating), stale)

    assert [entry["event"] for entry in logs] == ["join refused"]
    assert secret not in str(logs) + caplog.text
    assert secret not in everything_about(refused.value) + everything_about(repeated.value)


def everything_about(error: BaseException | None) -> str:
    """The texts of an error and of what led to it."""
    texts = []
    while error is not None:
        texts.append(repr(error) + str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


@contextlib.asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[int]:
    """A TCP server without TLS that answers everything with the same bytes; None: never says a word."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            if answer is None:
                await reader.read()
            else:
                await reader.read(1)
                writer.write(answer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", id="a plain web server"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="an ssh server"),
        pytest.param(b"\x00" * 1000, id="zeros"),
        pytest.param(b"", id="nothing, and closes"),
    ],
)
async def test_address_of_something_else_is_unavailable_and_says_what_to_check(answer: bytes) -> None:
    async with answering(answer) as port:
        with pytest.raises(errors.Unavailable) as raised:
            await join(cluster_address(port), TOKEN)

    assert cluster_address(port) in str(raised.value)
    assert f"TCP ports {port - 1} and {port}" in str(raised.value)


async def test_address_where_nothing_listens_is_unavailable() -> None:
    async with answering(b"") as port:
        pass

    with pytest.raises(errors.Unavailable) as raised:
        await join(cluster_address(port), TOKEN)

    assert f"cannot connect to the manager at {cluster_address(port)}" in str(raised.value)
    assert f"TCP ports {port - 1} and {port}" in str(raised.value)


async def test_name_that_does_not_resolve_is_unavailable() -> None:
    with pytest.raises(errors.Unavailable, match=r"cannot connect to the manager at no-such-host\.invalid"):
        await join("no-such-host.invalid:2377", TOKEN)


async def test_silence_ends_with_the_timeout() -> None:
    async with answering(None) as port:
        with pytest.raises(errors.Unavailable, match=r"did not answer within 0\.2 s; check the address"):
            await join(cluster_address(port), TOKEN, timeout_seconds=0.2)


async def test_manager_that_never_decides_ends_with_the_timeout() -> None:
    asked = asyncio.Event()
    released = asyncio.Event()

    async def issue(_request: pb.IssueCertificateRequest, _peer: str) -> pb.IssueCertificateResponse:
        asked.set()
        await released.wait()
        raise errors.Unavailable("too late")

    async with bootstrap(issue) as port:
        joining = asyncio.create_task(join(cluster_address(port), TOKEN, timeout_seconds=2))
        await asked.wait()
        with pytest.raises(errors.Unavailable, match="did not answer within 2 s"):
            await joining
        released.set()


@contextlib.asynccontextmanager
async def https(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[int]:
    """Some other web server, with a certificate."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(SERVER))
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"status": 404, "text": "no such page"}, id="not found"),
        pytest.param({"status": 302, "headers": {"Location": "https://127.0.0.1:1/"}}, id="a redirect"),
        pytest.param({"body": b"<html>welcome</html>"}, id="a page"),
        pytest.param({"body": b""}, id="an empty page"),
        pytest.param({"body": b"x" * 1_000_000}, id="an endless page"),
        pytest.param(
            {"body": pb.GetRootCertificateResponse(certificate_pem=b"x").SerializeToString()}, id="no PEM"
        ),
    ],
)
async def test_another_https_server_is_not_a_manager(answer: dict[str, Any]) -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(**answer)

    async with https(handler) as port:
        with pytest.raises(errors.Unavailable, match="is not a Swarmlet manager"):
            await join(cluster_address(port), TOKEN)


IMPOSSIBLE_ADDRESSES = """
:2377 host: host:port host:0 host:65535 host:99999 host:² tcp://host:2377 a,b:1
[::1 [::1]2377 host:2377/x user@host:1
"""


@pytest.mark.parametrize("address", ["", "a b:1", *IMPOSSIBLE_ADDRESSES.split()])
async def test_address_that_cannot_be_one_is_refused(address: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="invalid address"):
        await join(address, TOKEN)


async def test_token_that_cannot_be_one_is_refused_before_anything_is_sent() -> None:
    async with impostor(SERVER) as (port, seen):
        with pytest.raises(errors.InvalidArgument, match="invalid join token"):
            await join(cluster_address(port), "SWMTKN-1-abc")

    assert not seen
