"""The local socket: this node's own part in a swarm, and the door to the cluster.

Reached only by whoever may open the socket's file (root and the group that owns it).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import grpc
import structlog

from swarmlet.api import pb
from swarmlet.api.errors import SwarmletError
from swarmlet.api.v1 import control_pb2_grpc

R = TypeVar("R")

log = structlog.get_logger(__name__)


class LocalNode(Protocol):
    """What the daemon offers; errors are SwarmletErrors with texts for the user."""

    def info(self) -> pb.SwarmInfoResponse: ...
    async def init(self, request: pb.SwarmInitRequest) -> pb.SwarmInitResponse: ...
    async def join(self, request: pb.SwarmJoinRequest) -> pb.SwarmJoinResponse: ...
    async def leave(self, request: pb.SwarmLeaveRequest) -> None: ...
    def backup(self) -> AsyncGenerator[pb.BackupResponse, None]: ...
    async def restore(self, requests: AsyncIterator[pb.RestoreRequest]) -> pb.RestoreResponse: ...


class LocalSwarmServicer(control_pb2_grpc.LocalSwarmServicer):
    def __init__(self, node: LocalNode) -> None:
        self._node = node

    async def Info(  # noqa: N802 - the service's name
        self, request: pb.SwarmInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SwarmInfoResponse:
        return self._node.info()

    async def Init(  # noqa: N802 - the service's name
        self, request: pb.SwarmInitRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SwarmInitResponse:
        return await _answer(context, lambda: self._node.init(request))

    async def Join(  # noqa: N802 - the service's name
        self, request: pb.SwarmJoinRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SwarmJoinResponse:
        return await _answer(context, lambda: self._node.join(request))

    async def Leave(  # noqa: N802 - the service's name
        self, request: pb.SwarmLeaveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SwarmLeaveResponse:
        await _answer(context, lambda: self._node.leave(request))
        return pb.SwarmLeaveResponse()

    async def Backup(  # noqa: N802 - the service's name
        self, request: pb.BackupRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.BackupResponse]:
        try:
            async with aclosing(self._node.backup()) as responses:
                async for response in responses:
                    yield response
        except SwarmletError as error:
            await context.abort(error.code, error.message)

    async def Restore(  # noqa: N802 - the service's name
        self, request_iterator: AsyncIterator[pb.RestoreRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.RestoreResponse:
        return await _answer(context, lambda: self._node.restore(request_iterator))


async def _answer(context: grpc.aio.ServicerContext[Any, Any], call: Callable[[], Awaitable[R]]) -> R:
    try:
        return await call()
    except SwarmletError as error:
        await context.abort(error.code, error.message)
    except OSError as error:
        log.exception("a call on the local socket failed")
        await context.abort(grpc.StatusCode.INTERNAL, f"{error.strerror}: {error.filename}")
    raise AssertionError("abort raises")
