"""A real gRPC server on loopback with mutual TLS, whose methods answer whoever may call them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from swarmlet.ca.authorize import METHOD_ROLES, Peer, RoleInterceptor, Roles, peer_of
from swarmlet.ca.credentials import SERVER_OPTIONS, server_credentials
from swarmlet.ca.identity import Identity
from tests.unit.ca.builders import CLUSTER_ID

# One method of each kind of call, and one that no table names.
UNARY = "/swarmlet.v1.Control/GetCluster"
RENEW = "/swarmlet.v1.Certificates/Renew"
UNARY_STREAM = "/swarmlet.v1.Control/Watch"
STREAM_UNARY = "/swarmlet.v1.Raft/Stream"
STREAM_STREAM = "/swarmlet.v1.Dispatcher/Session"
MEMBERSHIP = "/swarmlet.v1.RaftMembership/Join"
UNLISTED = "/swarmlet.v1.LocalSwarm/Info"


@dataclass
class Served:
    """A running server: its address and who got past its checks, in order."""

    address: str
    callers: list[tuple[str, Peer]] = field(default_factory=list)


@contextlib.asynccontextmanager
async def serving(
    identity_source: Callable[[], Identity],
    *,
    cluster_id: str = CLUSTER_ID,
    is_removed: Callable[[str], bool] = lambda _: False,
    methods: Mapping[str, Roles] = METHOD_ROLES,
) -> AsyncIterator[Served]:
    interceptor = RoleInterceptor(cluster_id=cluster_id, is_removed=is_removed, methods=methods)
    server = grpc.aio.server(interceptors=[interceptor], options=list(SERVER_OPTIONS))
    served = Served("")
    server.add_generic_rpc_handlers((_Methods(served),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(identity_source))
    served.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield served
    finally:
        await server.stop(0)


async def call(channel: grpc.aio.Channel, method: str, *, timeout_seconds: float = 10) -> list[bytes]:
    """Calls a method in its own manner with the message b"a"; returns what it answered."""

    async def requests() -> AsyncIterator[bytes]:
        yield b"a"

    if method == UNARY_STREAM:
        return [m async for m in channel.unary_stream(method, None, None)(b"a", timeout=timeout_seconds)]
    if method == STREAM_STREAM:
        return [
            m async for m in channel.stream_stream(method, None, None)(requests(), timeout=timeout_seconds)
        ]
    if method == STREAM_UNARY:
        return [await channel.stream_unary(method, None, None)(requests(), timeout=timeout_seconds)]
    return [await channel.unary_unary(method, None, None)(b"a", timeout=timeout_seconds)]


async def refusal(
    channel: grpc.aio.Channel, method: str, *, timeout_seconds: float = 10
) -> tuple[grpc.StatusCode, str]:
    """How a call is refused; fails when it is answered."""
    try:
        answer = await call(channel, method, timeout_seconds=timeout_seconds)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError(f"{method} was answered with {answer}")


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def __init__(self, served: Served) -> None:
        self._served = served

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method

        def seen(context: Any) -> None:
            self._served.callers.append((method, peer_of(context)))

        async def unary(request: bytes, context: Any) -> bytes:
            seen(context)
            return b"got " + request

        async def unary_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            seen(context)
            yield b"got " + request
            yield b"end"

        async def stream_unary(requests: AsyncIterator[bytes], context: Any) -> bytes:
            seen(context)
            return b"got " + b"".join([m async for m in requests])

        async def stream_stream(requests: AsyncIterator[bytes], context: Any) -> None:
            seen(context)
            async for request in requests:
                await context.write(b"got " + request)
            await context.write(b"end")

        if method == UNARY_STREAM:
            return grpc.unary_stream_rpc_method_handler(unary_stream)
        if method == STREAM_UNARY:
            return grpc.stream_unary_rpc_method_handler(stream_unary)
        if method == STREAM_STREAM:
            return grpc.stream_stream_rpc_method_handler(stream_stream)
        if method in (UNARY, RENEW, MEMBERSHIP, UNLISTED):
            return grpc.unary_unary_rpc_method_handler(unary)
        return None
