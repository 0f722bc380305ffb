"""A group of managers' raft in one process: real `RaftNode`s, simulated disks, links and faults.

One seed is one schedule. A disk keeps what was synced; a crash loses the rest, and a
random part of what was on its way. Links are FIFO; a broken connection loses what is
in flight. Everything acknowledged, and everything refused for certain, is remembered
and compared with what all managers hold in the end.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from swarmlet.api import pb
from swarmlet.api.errors import SwarmletError, UnknownOutcome
from swarmlet.raft.engine import LEADER, MEMBERSHIP, NOOP, RaftSettings
from swarmlet.raft.journal import Entry, Journal
from swarmlet.raft.node import RaftFiles, RaftNode, RaftStopped
from swarmlet.raft.snapshot import Snapshot, SnapshotFile, decode


@dataclass
class Disk:
    """What survives a crash."""

    entries: list[Entry] = field(default_factory=list)
    term: int = 0
    vote: str | None = None
    commit: int = 1
    snapshot: bytes | None = None


class DiskJournal(Journal):
    """The journal's interface over a simulated disk: nothing is durable but by `sync`."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._entries = list(disk.entries)
        self._term, self._vote = disk.term, disk.vote
        self._commit_index = self._commit_recorded = disk.commit
        self._pending = []
        self._term_pending = False
        self._rewrite = False

    def sync(self) -> None:
        self._disk.entries = list(self._entries)
        self._disk.term, self._disk.vote = self._term, self._vote
        self._disk.commit = self._commit_recorded
        self._pending.clear()
        self._rewrite = self._term_pending = False

    def close(self) -> None:
        pass


class DiskSnapshots:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def load(self) -> Snapshot | None:
        return None if self._disk.snapshot is None else decode(self._disk.snapshot, "simulated snapshot")

    def read(self) -> bytes:
        assert self._disk.snapshot is not None
        return self._disk.snapshot

    def write(self, encoded: bytes) -> None:
        self._disk.snapshot = encoded


class DiskFiles:
    def __init__(self, disk: Disk) -> None:
        self.snapshot_file = cast(SnapshotFile, DiskSnapshots(disk))
        self.snapshot = self.snapshot_file.load()
        self.journal = DiskJournal(disk)


class ListMachine:
    """An append-only list: the result of an append is its position, so results can be checked."""

    def __init__(self, world: World, name: str) -> None:
        self.operations: list[bytes] = []
        self._world = world
        self._name = name

    def apply(self, index: int, data: bytes) -> int:
        self._world.applied(self._name, index, data)
        self.operations.append(data)
        return len(self.operations)

    def snapshot(self) -> Callable[[], bytes]:
        copy = list(self.operations)
        return lambda: b"\n".join(copy)

    def restore(self, index: int, data: bytes) -> None:
        self.operations = data.split(b"\n") if data else []


class SimTransport:
    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self.peers: set[str] = set()

    def set_peers(self, peers: Mapping[str, str]) -> None:
        gone, self.peers = self.peers - peers.keys(), set(peers)
        for peer in gone:
            self._world.set_connected(self._name, peer, False)
        for peer in self.peers:
            self._world.connect(self._name, peer)

    def send(self, peer: str, message: pb.RaftMessage) -> None:
        self._world.send(self._name, peer, message.SerializeToString())


@dataclass
class Link:
    """One direction between two managers."""

    in_flight: deque[tuple[float, bytes]] = field(default_factory=deque)
    stalled_until: float = 0.0
    connected: bool = False
    epoch: int = 0


@dataclass
class Manager:
    name: str
    disk: Disk
    node: RaftNode
    machine: ListMachine
    transport: SimTransport
    task: asyncio.Task[None]
    paused_until: float = 0.0


@dataclass
class Acknowledged:
    position: int
    began: float
    ended: float


class World:
    """Managers n0, n1, ... on the running (virtual) loop."""

    def __init__(self, rng: random.Random, *, size: int = 3, settings: RaftSettings | None = None) -> None:
        self.rng = rng
        self.names = [f"n{i}" for i in range(size)]
        self.settings = settings or RaftSettings(
            snapshot_entries=rng.choice([10, 40, 10_000]), heartbeat_seconds=0.1
        )
        self.delay_seconds = rng.choice([0.005, 0.02, 0.1])
        self.sync_seconds = rng.choice([0.0, 0.002, 0.02])
        self.disks = {name: Disk() for name in self.names}
        self.managers: dict[str, Manager] = {}
        self.links = {(a, b): Link() for a in self.names for b in self.names if a != b}
        self.separated: set[frozenset[str]] = set()
        self.violations: list[str] = []
        self.acknowledged: dict[bytes, Acknowledged] = {}
        self.refused: set[bytes] = set()
        self.leaders: dict[int, str] = {}
        self.clients: set[asyncio.Task[None]] = set()
        self._applied: dict[int, tuple[str, bytes]] = {}

    # ---- life and death

    def found(self) -> None:
        """Every manager's disk begins with the same log that names all of them."""
        for disk in self.disks.values():
            disk.entries = [(NOOP, 1, 0)]
            for number, name in enumerate(self.names):
                change = pb.MembershipChange(
                    action=pb.MembershipChange.ADD, member=pb.RaftMember(node_id=name, address=name)
                )
                disk.entries.append((MEMBERSHIP + change.SerializeToString(), number + 2, 1))
            disk.term = 1
            disk.commit = len(self.names) + 1

    def start(self, name: str) -> None:
        if name in self.managers:
            return
        disk = self.disks[name]
        machine = ListMachine(self, name)
        transport = SimTransport(self, name)
        node = RaftNode(
            node_id=name,
            files=cast(RaftFiles, DiskFiles(disk)),
            machine=machine,
            transport=transport,
            settings=self.settings,
            rng=random.Random(self.rng.random()),
            in_thread=self._in_thread,
        )
        task = asyncio.create_task(self._run(name, node), name=name)
        self.managers[name] = Manager(name, disk, node, machine, transport, task)

    async def _run(self, name: str, node: RaftNode) -> None:
        try:
            await node.run()
        except RaftStopped as error:
            self.violations.append(f"{name} stopped: {error}")

    async def _in_thread(self, call: Callable[[], object]) -> object:
        # A crash may come in here, before the disk has it.
        await asyncio.sleep(self.rng.uniform(0, self.sync_seconds))
        return call()

    def crash(self, name: str) -> None:
        """Power loss: what is not synced is gone, and some of what was just sent."""
        manager = self.managers.pop(name, None)
        if manager is None:
            return
        manager.task.cancel()
        for other in self.names:
            if other == name:
                continue
            outgoing = self.links[name, other]
            for _ in range(self.rng.randint(0, len(outgoing.in_flight))):
                outgoing.in_flight.pop()
            outgoing.connected = False
            self.links[other, name].in_flight.clear()
            self._later(self.delay_seconds * 3, self._notice_death, other, name)

    def _notice_death(self, survivor: str, dead: str) -> None:
        if dead not in self.managers:
            self.set_connected(survivor, dead, False)

    def alive(self) -> list[Manager]:
        return list(self.managers.values())

    # ---- connections

    def connect(self, a: str, b: str) -> None:
        """Both directions come up if both sides want each other and nothing is between them."""
        if a not in self.managers or b not in self.managers or frozenset((a, b)) in self.separated:
            return
        if b in self.managers[a].transport.peers and a in self.managers[b].transport.peers:
            self.set_connected(a, b, True)
            self.set_connected(b, a, True)

    def set_connected(self, a: str, b: str, up: bool) -> None:
        link = self.links[a, b]
        if link.connected == up:
            return
        link.connected = up
        link.in_flight.clear()
        link.epoch += 1
        manager = self.managers.get(a)
        if manager is not None:
            (manager.node.on_connected if up else manager.node.on_disconnected)(b)

    def break_connection(self, a: str, b: str) -> None:
        for x, y in ((a, b), (b, a)):
            self.links[x, y].in_flight.clear()
            self._later(self.rng.uniform(0, 0.5), self.set_connected, x, y, False)

    def separate(self, a: str, b: str) -> None:
        self.separated.add(frozenset((a, b)))
        self.break_connection(a, b)

    def reconnect(self, a: str, b: str) -> None:
        self.separated.discard(frozenset((a, b)))
        for x, y in ((a, b), (b, a)):
            self.links[x, y].stalled_until = 0.0
            self.set_connected(x, y, False)
        self.connect(a, b)

    def stall(self, a: str, b: str, seconds: float) -> None:
        link = self.links[a, b]
        link.stalled_until = max(link.stalled_until, self.time() + seconds)

    # ---- messages

    def send(self, a: str, b: str, data: bytes) -> None:
        link = self.links[a, b]
        if not link.connected:
            return
        link.in_flight.append((self.time() + self.rng.uniform(0, self.delay_seconds), data))
        if len(link.in_flight) == 1:
            self._later(0, self._pump, a, b, link.epoch)

    def _pump(self, a: str, b: str, epoch: int) -> None:
        link = self.links[a, b]
        if link.epoch != epoch or not link.in_flight:
            return
        receiver = self.managers.get(b)
        if receiver is None:
            link.in_flight.clear()
            return
        due = max(link.in_flight[0][0], link.stalled_until, receiver.paused_until)
        if due > self.time():
            self._later(due - self.time(), self._pump, a, b, epoch)
            return
        _, data = link.in_flight.popleft()
        receiver.node.on_message(a, pb.RaftMessage.FromString(data))
        if link.in_flight:
            self._later(0, self._pump, a, b, epoch)

    # ---- clients

    def submit(self, name: str, operation: bytes) -> None:
        manager = self.managers.get(name)
        if manager is not None:
            task = asyncio.create_task(self._client(manager.node, operation))
            self.clients.add(task)
            task.add_done_callback(self.clients.discard)

    async def _client(self, node: RaftNode, operation: bytes) -> None:
        began = self.time()
        try:
            position = await node.propose(operation)
        except UnknownOutcome:
            return
        except SwarmletError:
            # Said to be certainly not done.
            if self.managers.get(node.node_id, None) is not None:
                self.refused.add(operation)
            return
        assert isinstance(position, int)
        self.acknowledged[operation] = Acknowledged(position, began, self.time())

    # ---- watching

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def _later(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        asyncio.get_running_loop().call_later(seconds, call, *args)

    def applied(self, name: str, index: int, data: bytes) -> None:
        by, first = self._applied.setdefault(index, (name, data))
        if first != data:
            self.violations.append(f"{by} and {name} applied different entries at {index}")

    def observe(self) -> None:
        for manager in self.alive():
            core = manager.node.core
            if core.state == LEADER:
                first = self.leaders.setdefault(core.term, manager.name)
                if first != manager.name:
                    self.violations.append(f"{first} and {manager.name} both led term {core.term}")

    def leader(self) -> Manager | None:
        leading = [m for m in self.alive() if m.node.is_leader]
        return max(leading, key=lambda m: m.node.term, default=None)

    async def until(self, what: Callable[[], bool], seconds: float) -> bool:
        end = self.time() + seconds
        while not what():
            if self.time() >= end:
                return False
            await asyncio.sleep(0.02)
            self.observe()
        return True

    # ---- the end

    async def settle(self, seconds: float = 15.0) -> None:
        """Heals everything and waits until all managers agree; says so when they do not in time."""
        self.separated.clear()
        for name in self.names:
            self.start(name)
        for manager in self.alive():
            manager.paused_until = 0.0
        await asyncio.sleep(0)
        for number, a in enumerate(self.names):
            for b in self.names[number + 1 :]:
                self.reconnect(a, b)
        if not await self.until(self._agreed, seconds):
            states = {m.name: (m.node.term, m.node.core.applied_index) for m in self.alive()}
            self.violations.append(f"not agreed {seconds} s after everything was healed: {states}")

    def _agreed(self) -> bool:
        leader = self.leader()
        applied = {m.node.core.applied_index for m in self.alive()}
        return leader is not None and len(applied) == 1 and leader.node.core.last_index in applied

    def check(self) -> None:
        """Compares what clients were told with what all managers hold."""
        histories = {tuple(m.machine.operations) for m in self.alive()}
        if len(histories) != 1:
            self.violations.append(f"managers hold {len(histories)} different states")
            return
        (history,) = histories
        positions = {operation: number + 1 for number, operation in enumerate(history)}
        if len(positions) != len(history):
            self.violations.append("an operation was applied twice")
        for operation, told in self.acknowledged.items():
            if operation not in positions:
                self.violations.append(f"acknowledged write {operation!r} is lost")
            elif positions[operation] != told.position:
                self.violations.append(f"{operation!r} was told position {told.position}")
        for operation in self.refused & positions.keys():
            self.violations.append(f"{operation!r} was refused for certain and is there")
        self._check_real_time_order(positions)

    def _check_real_time_order(self, positions: dict[bytes, int]) -> None:
        newest_began = float("-inf")
        for told in sorted(self.acknowledged.values(), key=lambda a: a.position):
            if told.ended < newest_began:
                self.violations.append(
                    f"position {told.position} was answered before an earlier one was asked"
                )
            newest_began = max(newest_began, told.began)


Fault = Callable[[World], Awaitable[None]]


async def random_faults(world: World, seconds: float, rate: float = 1.0) -> None:
    """Crashes, cuts, stalls and pauses at random moments."""
    rng = world.rng
    end = world.time() + seconds
    while world.time() < end:
        await asyncio.sleep(rng.expovariate(rate))
        a, b = rng.sample(world.names, 2)
        kind = rng.random()
        if kind < 0.25:
            world.crash(a)
            world._later(rng.uniform(0.1, 2.5), world.start, a)
        elif kind < 0.45:
            world.break_connection(a, b)
            world._later(rng.uniform(0.6, 2.0), world.reconnect, a, b)
        elif kind < 0.6:
            world.separate(a, b)
            world._later(rng.uniform(0.6, 4.0), world.reconnect, a, b)
        elif kind < 0.8:
            world.stall(a, b, rng.uniform(0.1, 3.0))
        elif kind < 0.9:
            for other in world.names:
                if other != a:
                    world.separate(a, other)
                    world._later(rng.uniform(0.6, 4.0), world.reconnect, a, other)
        elif a in world.managers:
            world.managers[a].paused_until = world.time() + rng.uniform(0.1, 2.0)
        world.observe()


async def random_clients(world: World, seconds: float) -> None:
    rng = world.rng
    end = world.time() + seconds
    number = 0
    while world.time() < end:
        name = rng.choice(world.names)
        for _ in range(rng.choice([1, 1, 3, 12])):
            number += 1
            world.submit(name, b"%d" % number)
        await asyncio.sleep(rng.uniform(0.005, 0.15))
        world.observe()


async def random_run(seed: int, *, seconds: float = 14.0, size: int | None = None) -> World:
    """One schedule from its seed: faults and clients for a while, then peace, then the reckoning."""
    rng = random.Random(seed)
    world = World(rng, size=size or rng.choice([3, 3, 5]))
    world.found()
    for name in world.names:
        world.start(name)
    await world.until(lambda: world.leader() is not None, 10)
    await asyncio.gather(random_faults(world, seconds), random_clients(world, seconds))
    await world.settle()
    world.check()
    return world
