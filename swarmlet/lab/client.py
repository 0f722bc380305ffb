"""Talking to one node of a lab over its local socket, as the command line does.

Errors of a call come out as the classes of `swarmlet.api.errors`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio

from swarmlet.api import pb
from swarmlet.api.errors import from_code
from swarmlet.api.v1.control_pb2_grpc import ControlStub, LocalSwarmStub
from swarmlet.api.wire import STALE_METADATA

T = TypeVar("T")

# A daemon that comes back must be found at once; the default waits for seconds.
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    # A channel of its own: what it learnt about a dead daemon is not shared.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 << 20),
)


class NodeClient:
    """The stubs of one daemon. Use as an async context manager, or `close` it."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self.control = ControlStub(self._channel)
        self.local = LocalSwarmStub(self._channel)

    async def __aenter__(self) -> NodeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close(None)

    async def info(self, *, timeout: float, wait: bool = False) -> pb.SwarmInfoResponse:
        """What the daemon says of itself; with `wait`, as soon as it listens."""
        request = pb.SwarmInfoRequest()
        return await told(self.local.Info(request, timeout=timeout, wait_for_ready=wait))

    async def nodes(self, *, timeout: float) -> list[pb.Node]:
        """The nodes as this one sees them, also when it is cut off from the others."""
        stale = ((STALE_METADATA, "1"),)
        call = self.control.ListNodes(pb.ListNodesRequest(), timeout=timeout, metadata=stale)
        return list((await told(call)).nodes)

    async def services(self, *, timeout: float) -> list[pb.Service]:
        request = pb.ListServicesRequest(status=True)
        return list((await told(self.control.ListServices(request, timeout=timeout))).services)

    async def tasks(self, *, timeout: float, service: str = "") -> list[pb.Task]:
        request = pb.ListTasksRequest()
        if service:
            request.filters.add(key="service", values=[service])
        return list((await told(self.control.ListTasks(request, timeout=timeout))).tasks)

    async def watch(self, *kinds: str, service_id: str = "") -> AsyncIterator[pb.WatchResponse]:
        """Everything of `kinds` there is, then every change, until the daemon goes."""
        call = self.control.Watch(pb.WatchRequest(kinds=kinds, service_id=service_id))
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise from_code(error.code(), error.details() or "") from error
        finally:
            call.cancel()


async def told(call: Awaitable[T]) -> T:
    """The answer of a call; its failure as the error that the daemon raised."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_code(error.code(), error.details() or "") from error
