"""The dispatcher and the log broker on the mutual-TLS port: a thin adapter, no rules of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from swarmlet.api import pb
from swarmlet.api.errors import NotLeader, SwarmletError
from swarmlet.api.v1 import dispatcher_pb2_grpc
from swarmlet.api.wire import LEADER_TRAILER
from swarmlet.ca.authorize import peer_of
from swarmlet.manager.dispatcher.dispatcher import Dispatcher
from swarmlet.manager.logbroker import LogBroker

_Context = grpc.aio.ServicerContext[Any, Any]


class DispatcherService(dispatcher_pb2_grpc.DispatcherServicer):
    def __init__(
        self, dispatcher: Dispatcher, broker: LogBroker, *, leader_address: Callable[[], str]
    ) -> None:
        """`leader_address` is where the present leader serves this port, or empty."""
        self._dispatcher = dispatcher
        self._broker = broker
        self._leader_address = leader_address

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: _Context
    ) -> AsyncIterator[pb.ManagerMessage]:
        node_id = peer_of(context).node_id
        session = self._dispatcher.session(node_id, host_of(context.peer()), request_iterator)
        try:
            async with aclosing(session) as messages:
                async for message in messages:
                    yield message
        except SwarmletError as error:
            await self._abort(context, error)

    async def PublishLogs(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.LogBatch], context: _Context
    ) -> pb.LogPublished:
        try:
            await self._broker.publish(peer_of(context).node_id, request_iterator)
        except SwarmletError as error:
            await self._abort(context, error)
        return pb.LogPublished()

    async def _abort(self, context: _Context, error: SwarmletError) -> None:
        if isinstance(error, NotLeader):
            leader = error.leader_address or self._leader_address()
            context.set_trailing_metadata(((LEADER_TRAILER, leader),))
        await context.abort(error.code, error.message)


def host_of(peer: str) -> str:
    """The host of gRPC's name for a peer: "ipv4:10.0.0.1:4711", "ipv6:%5B::1%5D:4711"."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].strip("[]")
