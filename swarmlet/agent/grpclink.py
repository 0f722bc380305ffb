"""The link to the managers over gRPC: whom to ask, and errors in the house's words.

Knows all managers' addresses, asks one by chance, follows the hint to the leader, and
passes over the one that failed last. Channels are the node's to make, with its
certificate.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import structlog

from swarmlet.api import pb
from swarmlet.api.errors import NotLeader, SwarmletError, Unavailable, from_code
from swarmlet.api.v1 import dispatcher_pb2_grpc
from swarmlet.api.wire import LEADER_TRAILER

_Call = grpc.aio.StreamStreamCall[pb.AgentMessage, pb.ManagerMessage]

log = structlog.get_logger(__name__)


class GrpcLink:
    """Implements `link.ManagerLink`."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        channel: Callable[[str], grpc.aio.Channel],
        rng: random.Random,
        on_managers: Callable[[Sequence[pb.ManagerAddress]], None] | None = None,
    ) -> None:
        """`channel` makes a channel to a manager's address; `on_managers` is told new lists, to keep them."""
        self._addresses = list(addresses)
        self._channel = channel
        self._rng = rng
        self._on_managers = on_managers
        self._leader_hint = ""
        self._failed_last = ""
        self._present: grpc.aio.Channel | None = None

    @property
    def addresses(self) -> Sequence[str]:
        return tuple(self._addresses)

    def session(self) -> AbstractAsyncContextManager[GrpcSession]:
        """One attempt; see `link.ManagerLink`."""
        return self._open()

    async def publish_logs(self, batches: AsyncIterator[pb.LogBatch]) -> None:
        channel = self._present
        if channel is None:
            raise Unavailable("no session with a manager")
        try:
            await dispatcher_pb2_grpc.DispatcherStub(channel).PublishLogs(batches)
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from error

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[GrpcSession, None]:
        address = self._choose()
        # Made anew: a certificate may have been renewed, and an old channel may be in its own back-off.
        channel = self._channel(address)
        # The stubs do not know that a stream may be written to later.
        stub: Any = dispatcher_pb2_grpc.DispatcherStub(channel)
        call: _Call = stub.Session()
        self._present = channel
        try:
            yield GrpcSession(call, self._learn)
        except NotLeader as error:
            self._leader_hint = error.leader_address
            raise
        except SwarmletError:
            self._failed_last = address
            raise
        finally:
            self._present = None
            call.cancel()
            await channel.close(None)

    def _choose(self) -> str:
        hint, self._leader_hint = self._leader_hint, ""
        # Passed over once only: it may be the leader again.
        failed, self._failed_last = self._failed_last, ""
        if hint and hint != failed:
            return hint
        others = [address for address in self._addresses if address != failed]
        if not others and not self._addresses:
            raise Unavailable("no manager's address is known")
        return self._rng.choice(others or self._addresses)

    def _learn(self, managers: Sequence[pb.ManagerAddress]) -> None:
        addresses = sorted(manager.address for manager in managers if manager.address)
        if addresses and addresses != sorted(self._addresses):
            self._addresses = addresses
            if self._on_managers is not None:
                self._on_managers(managers)


class GrpcSession:
    """Implements `link.LinkSession`."""

    def __init__(self, call: _Call, learn: Callable[[Sequence[pb.ManagerAddress]], None]) -> None:
        self._call = call
        self._learn = learn
        self._writing = asyncio.Lock()

    async def send(self, message: pb.AgentMessage) -> None:
        # gRPC takes one write at a time.
        async with self._writing:
            try:
                await self._call.write(message)
            except grpc.aio.AioRpcError as error:
                raise _translate(error) from error
            except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                raise await self._end() from error

    async def __aiter__(self) -> AsyncIterator[pb.ManagerMessage]:
        try:
            async for message in self._call:
                if message.HasField("session"):
                    self._learn(message.session.managers)
                yield message
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from error

    async def _end(self) -> SwarmletError:
        """Why the call is over, for a write that came after its end."""
        if not self._call.done():
            return Unavailable("the session has ended")
        return _error_of(
            await self._call.code(), await self._call.details(), await self._call.trailing_metadata()
        )


def _translate(error: grpc.aio.AioRpcError) -> SwarmletError:
    return _error_of(error.code(), error.details(), error.trailing_metadata())


def _error_of(code: grpc.StatusCode, details: str | None, trailers: Any) -> SwarmletError:
    for key, value in trailers or ():
        if key == LEADER_TRAILER:
            return NotLeader(value.decode() if isinstance(value, bytes) else value)
    if code == grpc.StatusCode.OK:
        return Unavailable("the manager ended the session")
    return from_code(code, details or code.name)
