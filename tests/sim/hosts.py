"""The hosts of a simulated cluster: the real manager and the real agent, on simulated ground.

What a host is without its daemon (disk, engine with running tasks, clock) survives the
daemon's process; what `Daemon` holds dies with it. The manager is the daemon's own,
with other ends: raft, control and sessions go over the simulated network.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import grpc.aio

from swarmlet.agent.agent import Agent
from swarmlet.agent.grpclink import GrpcLink, GrpcSession
from swarmlet.agent.journal import MemoryJournal
from swarmlet.api import pb
from swarmlet.api.errors import NotFound, NotLeader, SwarmletError
from swarmlet.control.control import Control
from swarmlet.control.forward import ForwardingControl
from swarmlet.manager.dispatcher.dispatcher import Dispatcher
from swarmlet.manager.logbroker import LogBroker
from swarmlet.node.manager import Manager
from swarmlet.node.managers import ManagerKeeper
from swarmlet.raft.engine import RaftSettings
from swarmlet.raft.node import RaftFiles, RaftNode
from swarmlet.store.store import Store
from tests.sim.disks import Disk, DiskFiles
from tests.sim.engine import Engine, RecordingProxy
from tests.sim.network import Connection, Network, Stream, call, copied, open_stream
from tests.sim.processes import Process
from tests.sim.raftlinks import RaftLinks

EPOCH = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Ground(Protocol):
    """What hosts need of their world."""

    network: Network
    raft_settings: RaftSettings
    manager_names: list[str]
    sync_seconds: float
    hosts: dict[str, Host]
    is_formed: bool

    def applied(self, name: str, index: int, data: bytes) -> None: ...


@dataclass
class Host:
    """A machine; its node has its name."""

    name: str
    is_manager: bool
    engine: Engine
    rng: random.Random
    disk: Disk = field(default_factory=Disk)
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    clock_offset: timedelta = timedelta(0)
    daemon: Daemon | None = None
    boots: int = 0

    def now(self) -> datetime:
        """The wall clock of this host."""
        seconds = self.engine.loop.time()
        return EPOCH + timedelta(seconds=seconds) + self.clock_offset


class Daemon:
    """One run of the daemon on a host."""

    def __init__(self, ground: Ground, host: Host, process: Process) -> None:
        self.ground = ground
        self.host = host
        self.process = process
        self.proxy = RecordingProxy(host.rng)
        self.manager: SimManager | None = None
        self.agent: Agent | None = None

    def start(self) -> None:
        if self.host.is_manager:
            self.process.spawn(self._manage, "manager")
        if self.ground.is_formed:
            self.start_agent()

    def start_agent(self) -> None:
        self.process.spawn(self._work, "agent")

    async def _manage(self) -> None:
        self.manager = SimManager(self.ground, self.host, self.process)
        await self.manager.take_part()

    async def _work(self) -> None:
        host = self.host
        self.agent = Agent(
            node_id=host.name,
            runtime=host.engine,
            state_dir=Path("/nonexistent"),
            link=SimLink(self.ground, self.process, random.Random(host.rng.random())),
            network=self.proxy,
            now=host.now,
            rng=random.Random(host.rng.random()),
            boot_id=f"{host.name}-{host.boots}",
            address=host.name,
            journal=host.journal,
        )
        try:
            await self.agent.run()
        except NotFound:
            # As node.swarm does when the node was removed.
            await self.agent.remove_all_tasks()


# ---- the manager


class WatchedStore(Store):
    """Tells the world of every entry that it applies."""

    def __init__(self, ground: Ground, host: Host, rng: random.Random) -> None:
        super().__init__(now=host.now, rng=rng)
        self._ground = ground
        self._host = host

    def apply(self, index: int, data: bytes) -> SwarmletError | None:
        self._ground.applied(self._host.name, index, data)
        return super().apply(index, data)


class SimManager(Manager):
    """`node.manager.Manager` with its ends in memory: what it does while leading is inherited."""

    def __init__(self, ground: Ground, host: Host, process: Process) -> None:
        self._ground = ground
        self._process = process
        self._rng = rng = random.Random(host.rng.random())
        self.address = host.name
        self._now = host.now
        self.store = WatchedStore(ground, host, rng)
        self.links = RaftLinks(ground.network, process, self._peer_links)
        self.raft = RaftNode(
            node_id=host.name,
            files=cast(RaftFiles, DiskFiles(host.disk)),
            machine=self.store,
            transport=self.links,
            settings=ground.raft_settings,
            rng=rng,
            in_thread=self._in_thread,
        )
        self.links.attach(self.raft)
        self.store.attach(self.raft)
        self._dispatcher = Dispatcher(
            self.store,
            now=host.now,
            rng=rng,
            managers=self.manager_addresses,
            barrier=self.raft.barrier,
        )
        self._broker = LogBroker(self.store, self._dispatcher, rng=rng)
        self._control = Control(
            self.store,
            now=host.now,
            rng=rng,
            agreement=self.raft,
            log_source=self._broker,
            token_rng=rng,
        )
        self.control = ForwardingControl(self._control, agreement=self.raft, connect=self._stub_of, rng=rng)
        self._keeper = ManagerKeeper(self.store, self.raft)

    async def take_part(self) -> None:
        await asyncio.gather(self.raft.run(), self._follow_leadership())

    async def _in_thread(self, work: Callable[[], object]) -> object:
        # A crash may come in here, before the disk has it.
        await asyncio.sleep(self._rng.uniform(0, self._ground.sync_seconds))
        return work()

    def _peer_links(self, name: str) -> RaftLinks | None:
        daemon = self._ground.hosts[name].daemon
        return None if daemon is None or daemon.manager is None else daemon.manager.links

    # ---- what others call

    async def answer(self, method: str, request: Any) -> Any:
        """A call of another manager's: answered from here or refused."""
        return await getattr(self._control, method)(request)

    async def serve_session(
        self, node_id: str, incoming: AsyncIterator[Any], send: Callable[[Any], None]
    ) -> None:
        """As `dispatcher.grpc.DispatcherService.Session` does."""
        try:
            async with aclosing(self._dispatcher.session(node_id, node_id, incoming)) as messages:
                async for message in messages:
                    send(message)
        except NotLeader as error:
            raise NotLeader(error.leader_address or self._leader_address()) from None

    def _stub_of(self, leader: pb.RaftMember) -> Any:
        return _Stub(self._ground, self._process, leader.address)


class _Stub:
    """Control on another manager: methods by their gRPC names, as `ForwardingControl` calls them."""

    def __init__(self, ground: Ground, process: Process, address: str) -> None:
        self._ground = ground
        self._process = process
        self._address = address

    def __getattr__(self, rpc: str) -> Callable[..., Any]:
        method = re.sub(r"(?<!^)([A-Z])", r"_\1", rpc).lower()

        def handler() -> Callable[[Any], Any]:
            return lambda message: manager_on(self._ground, self._address).answer(method, message)

        async def ask(request: Any, timeout: float | None = None, **_: Any) -> Any:
            network = self._ground.network
            return await call(network, self._process, self._address, handler, request, timeout=timeout)

        return ask


def manager_on(ground: Ground, name: str) -> SimManager:
    """The manager that runs on a host. Raises Unavailable-like errors as a starting one would."""
    daemon = ground.hosts[name].daemon
    if daemon is None or daemon.manager is None:
        raise NotLeader
    return daemon.manager


class SimLink(GrpcLink):
    """`agent.grpclink.GrpcLink`, whose choice of a manager is inherited, over the simulated network."""

    def __init__(self, ground: Ground, process: Process, rng: random.Random) -> None:
        super().__init__(ground.manager_names, channel=_no_channel, rng=rng)
        self._ground = ground
        self._process = process

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[GrpcSession, None]:
        address = self._choose()
        connection: Connection | None = None

        async def serve(incoming: AsyncIterator[Any], send: Callable[[Any], None]) -> None:
            await manager_on(self._ground, address).serve_session(self._process.host, incoming, send)

        try:
            stream, connection = await open_stream(self._ground.network, self._process, address, serve)
            yield cast(GrpcSession, SimSession(stream, connection, self._learn))
        except NotLeader as error:
            self._leader_hint = error.leader_address
            raise
        except SwarmletError:
            self._failed_last = address
            raise
        finally:
            if connection is not None:
                connection.close(0)


class SimSession:
    def __init__(
        self,
        stream: Stream,
        connection: Connection,
        learn: Callable[[Sequence[pb.ManagerAddress]], None],
    ) -> None:
        self._stream = stream
        self._connection = connection
        self._learn = learn

    async def send(self, message: pb.AgentMessage) -> None:
        self._stream.raise_if_ended()
        self._connection.send(0, copied(message))

    async def __aiter__(self) -> AsyncIterator[pb.ManagerMessage]:
        async for message in self._stream:
            if message.HasField("session"):
                self._learn(message.session.managers)
            yield message


def _no_channel(address: str) -> grpc.aio.Channel:
    raise AssertionError(f"no gRPC in a simulation: {address}")
