"""Messages between managers over gRPC: one client-streamed call per direction and pair.

A call's messages arrive in order and once; a new call starts empty, and the server
stops reading the old one first. What is queued is bounded: a peer that does not keep
up loses its connection, and the leader starts again from what the peer confirmed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping

import grpc
import structlog

from swarmlet.api import pb
from swarmlet.api.v1 import raft_pb2_grpc
from swarmlet.raft.node import PeerEvents

QUEUE_MESSAGES_MAX = 4096
QUEUE_BYTES_MAX = 64 << 20
RECONNECT_SECONDS_MIN = 0.05
RECONNECT_SECONDS_MAX = 0.5
CONNECT_SECONDS_MAX = 2.0
OPEN_KEY, OPEN_VALUE = "raft-stream", "open"
"""Initial metadata by which the server says that it reads; a call that failed has none."""

ChannelFactory = Callable[[str, str], grpc.aio.Channel]
"""(node id, address) -> a mutually authenticated channel that accepts only that node."""

PeerCall = grpc.aio.StreamUnaryCall[pb.RaftMessage, pb.RaftAck]

log = structlog.get_logger(__name__)


class GrpcTransport:
    """Implements `node.PeerTransport`. `attach` must be called before the first peer is set."""

    def __init__(self, connect: ChannelFactory, *, rng: random.Random) -> None:
        self._connect = connect
        self._rng = rng
        self._events: PeerEvents | None = None
        self._links: dict[str, _Link] = {}
        self._stopping: set[asyncio.Task[None]] = set()

    def attach(self, events: PeerEvents) -> None:
        self._events = events

    def set_peers(self, peers: Mapping[str, str]) -> None:
        assert self._events is not None
        for peer in [p for p, link in self._links.items() if peers.get(p) != link.address]:
            self._stop(self._links.pop(peer))
        for peer, address in peers.items():
            if peer not in self._links:
                self._links[peer] = _Link(peer, address, self._connect, self._events, self._rng)

    def send(self, peer: str, message: pb.RaftMessage) -> None:
        link = self._links.get(peer)
        if link is not None:
            link.send(message)

    def _stop(self, link: _Link) -> None:
        link.task.cancel()
        self._stopping.add(link.task)
        link.task.add_done_callback(self._stopping.discard)

    async def close(self) -> None:
        links, self._links = list(self._links.values()), {}
        for link in links:
            self._stop(link)
        await asyncio.gather(*self._stopping, return_exceptions=True)


class _Link:
    """This manager's call to one peer, made again whenever it breaks."""

    def __init__(
        self, peer: str, address: str, connect: ChannelFactory, events: PeerEvents, rng: random.Random
    ) -> None:
        self.peer = peer
        self.address = address
        self._connect = connect
        self._events = events
        self._rng = rng
        self._queue: asyncio.Queue[pb.RaftMessage] | None = None
        self._queued_bytes = 0
        self._overflowed = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"raft-link-{peer}")

    def send(self, message: pb.RaftMessage) -> None:
        queue = self._queue
        if queue is None or self._overflowed.is_set():
            return
        self._queued_bytes += message.ByteSize()
        if queue.qsize() >= QUEUE_MESSAGES_MAX or self._queued_bytes > QUEUE_BYTES_MAX:
            self._overflowed.set()
            return
        queue.put_nowait(message)

    async def _run(self) -> None:
        delay = RECONNECT_SECONDS_MIN
        while True:
            try:
                async with self._connect(self.peer, self.address) as channel:
                    stub = raft_pb2_grpc.RaftStub(channel)
                    if await self._stream(stub):
                        delay = RECONNECT_SECONDS_MIN
            except grpc.aio.AioRpcError as error:
                log.debug("peer not reached", peer=self.peer, address=self.address, code=error.code().name)
            except TimeoutError:
                log.debug("peer does not answer", peer=self.peer, address=self.address)
            except Exception:
                # Whatever it was, a manager that is never called again is worse.
                log.exception("connection to peer failed", peer=self.peer, address=self.address)
            await asyncio.sleep(delay * self._rng.uniform(0.5, 1.0))
            delay = min(delay * 2, RECONNECT_SECONDS_MAX)

    async def _stream(self, stub: raft_pb2_grpc.RaftAsyncStub) -> bool:
        """One call from its beginning to its end; True when it had been connected."""
        queue: asyncio.Queue[pb.RaftMessage] = asyncio.Queue()
        call = stub.Stream()  # type: ignore[call-arg]  # written to, not given an iterator
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                metadata = await call.initial_metadata()
            if (OPEN_KEY, OPEN_VALUE) not in tuple(metadata):
                log.debug("peer not reached", peer=self.peer, address=self.address)
                return False
            self._queue, self._queued_bytes = queue, 0
            self._overflowed.clear()
            self._events.on_connected(self.peer)
            try:
                await self._until_broken(call, queue)
            finally:
                self._queue = None
                self._events.on_disconnected(self.peer)
            return True
        finally:
            call.cancel()

    async def _until_broken(self, call: PeerCall, queue: asyncio.Queue[pb.RaftMessage]) -> None:
        waits = {
            asyncio.ensure_future(call.code()),
            asyncio.ensure_future(self._overflowed.wait()),
            asyncio.ensure_future(self._write_all(call, queue)),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _write_all(self, call: PeerCall, queue: asyncio.Queue[pb.RaftMessage]) -> None:
        while True:
            message = await queue.get()
            self._queued_bytes -= message.ByteSize()
            await call.write(message)


class RaftServicer(raft_pb2_grpc.RaftServicer):
    """The receiving end. The caller's node id comes from its certificate, never from a message."""

    def __init__(
        self,
        events: PeerEvents,
        peer_of: Callable[[grpc.aio.ServicerContext[pb.RaftMessage, pb.RaftAck]], str],
    ) -> None:
        self._events = events
        self._peer_of = peer_of
        self._current: dict[str, object] = {}

    async def Stream(  # noqa: N802 - the service's name
        self,
        request_iterator: AsyncIterator[pb.RaftMessage],
        context: grpc.aio.ServicerContext[pb.RaftMessage, pb.RaftAck],
    ) -> pb.RaftAck:
        peer = self._peer_of(context)
        this_call = object()
        self._current[peer] = this_call
        await context.send_initial_metadata(((OPEN_KEY, OPEN_VALUE),))
        try:
            async for message in request_iterator:
                if self._current.get(peer) is not this_call:
                    # The peer has made a new call: what is left of this one is of the past.
                    break
                self._events.on_message(peer, message)
        finally:
            if self._current.get(peer) is this_call:
                del self._current[peer]
        return pb.RaftAck()
