"""Managers with everything real but the certificates: files, threads, gRPC on loopback, relays between."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from swarmlet.api import pb
from swarmlet.api.v1 import raft_pb2_grpc
from swarmlet.raft.engine import RaftSettings
from swarmlet.raft.node import RaftFiles, RaftNode, bootstrap
from swarmlet.raft.transport import GrpcTransport, RaftServicer

WAIT_SECONDS_MAX = 20.0

FAST = RaftSettings(heartbeat_seconds=0.05, election_seconds_min=0.3, election_seconds_max=0.6)


class ListMachine:
    def __init__(self) -> None:
        self.operations: list[bytes] = []

    def apply(self, index: int, data: bytes) -> int:
        self.operations.append(data)
        return len(self.operations)

    def snapshot(self) -> Callable[[], bytes]:
        copy = list(self.operations)
        return lambda: b"\n".join(copy)

    def restore(self, index: int, data: bytes) -> None:
        self.operations = data.split(b"\n") if data else []


class Relay:
    """A port that passes on to another, keeps what went through, and can be cut."""

    def __init__(self) -> None:
        self.address = ""
        self.target = ""
        self.passed = bytearray()
        self.is_cut = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.break_connections()
        await self._server.wait_closed()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def break_connections(self) -> None:
        for writer in self._writers:
            writer.close()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connected(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        self._writers.add(writer)
        try:
            if self.is_cut:
                return
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
            self._writers.add(there_writer)
            try:
                await asyncio.gather(self._pass(reader, there_writer), self._pass(there_reader, writer))
            finally:
                there_writer.close()
                self._writers.discard(there_writer)
        except OSError:
            # Nobody is behind the relay at the moment.
            return
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                self.passed += data
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


def peer_of(context: grpc.aio.ServicerContext[pb.RaftMessage, pb.RaftAck]) -> str:
    """Without certificates the user agent says who calls."""
    metadata = dict(context.invocation_metadata() or ())
    return str(metadata["user-agent"]).split(" ", 1)[0]


def connector(name: str) -> Callable[[str, str], grpc.aio.Channel]:
    options = (("grpc.primary_user_agent", name), ("grpc.use_local_subchannel_pool", 1))
    return lambda peer, address: grpc.aio.insecure_channel(address, options=options)


class RunningManager:
    def __init__(self, name: str, directory: Path, relay: Relay, settings: RaftSettings) -> None:
        self.name = name
        self.directory = directory
        self.relay = relay
        self.member = pb.RaftMember(node_id=name, address=relay.address)
        self.machine = ListMachine()
        self.files = RaftFiles(directory)
        self.transport = GrpcTransport(connector(name), rng=random.Random(name))
        self._settings = settings
        self._server = grpc.aio.server()
        self.task: asyncio.Task[None] | None = None

    async def start(self, *, is_first: bool) -> None:
        if is_first:
            bootstrap(self.files, self.member)
        self.node = RaftNode(
            node_id=self.name,
            files=self.files,
            machine=self.machine,
            transport=self.transport,
            settings=self._settings,
            rng=random.Random(self.name),
        )
        self.transport.attach(self.node)
        raft_pb2_grpc.add_RaftServicer_to_server(RaftServicer(self.node, peer_of), self._server)
        self.relay.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        self.task = asyncio.create_task(self.node.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self._server.stop(grace=0)
        await self.transport.close()


class Managers:
    """A group that grows by real joins."""

    def __init__(self, directory: Path, settings: RaftSettings) -> None:
        self._directory = directory
        self._settings = settings
        self.running: dict[str, RunningManager] = {}
        self.relays: dict[str, Relay] = {}

    async def start(self, name: str, *, is_first: bool = False) -> RunningManager:
        if name not in self.relays:
            self.relays[name] = Relay()
            await self.relays[name].start()
        manager = RunningManager(name, self._directory / name, self.relays[name], self._settings)
        self.running[name] = manager
        await manager.start(is_first=is_first)
        return manager

    async def stop(self, name: str) -> None:
        await self.running.pop(name).stop()

    async def grow(self, *names: str) -> None:
        for name in names:
            manager = await self.start(name, is_first=not self.running)
            leader = await self.leader()
            if leader is not manager:
                await leader.node.add_member(manager.member)

    async def leader(self, *, other_than: str = "") -> RunningManager:
        def leading() -> RunningManager | None:
            found = [m for m in self.running.values() if m.node.is_leader and m.name != other_than]
            return max(found, key=lambda m: m.node.term, default=None)

        await eventually(lambda: leading() is not None)
        found = leading()
        assert found is not None
        return found

    async def agreed(self) -> None:
        """Returns once all who run have applied the same."""
        machines = [m.machine for m in self.running.values()]
        await eventually(lambda: all(m.operations == machines[0].operations for m in machines))

    async def close(self) -> None:
        for name in list(self.running):
            await self.stop(name)
        for relay in self.relays.values():
            await relay.stop()


@asynccontextmanager
async def managers(directory: Path, *names: str, settings: RaftSettings = FAST) -> AsyncIterator[Managers]:
    group = Managers(directory, settings)
    try:
        await group.grow(*names)
        yield group
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await group.close()


async def eventually(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not what():  # noqa: ASYNC110 - there is no event for what a test looks at
            await asyncio.sleep(0.02)
