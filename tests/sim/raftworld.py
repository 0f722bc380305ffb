"""A group of managers' raft in one process: real `RaftNode`s, simulated disks, links and faults.

One seed is one schedule. A disk keeps what was synced; a crash loses the rest, before
or after a sync that is under way. Each direction between two managers is a connection
of its own, FIFO; when it breaks, what is in flight is lost. Everything acknowledged,
everything refused for certain and everything read is remembered and compared with
what all managers hold in the end.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from swarmlet.api import pb
from swarmlet.api.errors import NotLeader, SwarmletError, UnknownOutcome
from swarmlet.raft.engine import LEADER, RaftSettings
from swarmlet.raft.node import RaftFiles, RaftNode, RaftStopped
from tests.sim.disks import Disk, DiskFiles

RETRY_SECONDS_MAX = 0.5


class ListMachine:
    """An append-only list without repetitions: the result of an append is its position.

    As in the store, an operation that comes again (its caller did not know whether it was
    done) is not done again.
    """

    def __init__(self, world: World, name: str) -> None:
        self.operations: list[bytes] = []
        self._positions: dict[bytes, int] = {}
        self._world = world
        self._name = name

    def apply(self, index: int, data: bytes) -> int:
        self._world.applied(self._name, index, data)
        if data not in self._positions:
            self.operations.append(data)
            self._positions[data] = len(self.operations)
        return self._positions[data]

    def snapshot(self) -> Callable[[], bytes]:
        copy = list(self.operations)
        return lambda: b"\n".join(copy)

    def restore(self, index: int, data: bytes) -> None:
        self.operations = data.split(b"\n") if data else []
        self._positions = {o: number + 1 for number, o in enumerate(self.operations)}


class SimTransport:
    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self.peers: set[str] = set()

    def set_peers(self, peers: Mapping[str, str]) -> None:
        gone, self.peers = self.peers - peers.keys(), set(peers)
        for peer in sorted(gone):
            self._world.set_connected(self._name, peer, False)
        for peer in sorted(self.peers):
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
    """Managers n0, n1, ... on the running (virtual) loop. The first `size` begin as members."""

    def __init__(
        self, rng: random.Random, *, size: int = 3, spare: int = 0, settings: RaftSettings | None = None
    ) -> None:
        self.rng = rng
        self.names = [f"n{i}" for i in range(size + spare)]
        self.founders = self.names[:size]
        self.settings = settings or RaftSettings(
            snapshot_entries=rng.choice([10, 40, 10_000]),
            snapshot_chunk_bytes=rng.choice([50, 300, 256 << 10]),
            slow_follower_entries=rng.choice([0, 3, 500]),
        )
        self.delay_seconds = rng.choice([0.005, 0.02, 0.1])
        disk_seconds = rng.choice([[0.0], [0.002], [0.02], [0.0, 0.002, 0.2]])
        self.sync_seconds = {name: rng.choice(disk_seconds) for name in self.names}
        self.power_loss_at_sync = rng.choice([0.0, 0.001, 0.005])
        self.disks = {name: Disk() for name in self.names}
        self.managers: dict[str, Manager] = {}
        self.links = {(a, b): Link() for a in self.names for b in self.names if a != b}
        self.separated: set[frozenset[str]] = set()
        self.violations: list[str] = []
        self.acknowledged: dict[bytes, Acknowledged] = {}
        self.refused: set[bytes] = set()
        self.leaders: dict[int, str] = {}
        self.clients: set[asyncio.Task[None]] = set()
        self.asked_to_change: set[str] = set()
        self._applied: dict[int, tuple[str, bytes]] = {}

    # ---- life and death

    def found(self) -> None:
        """The founders' disks begin with the same log that names all of them."""
        for name in self.founders:
            self.disks[name].found(self.founders)

    def start(self, name: str) -> None:
        """Begins or comes back with what is on its disk."""
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
            in_thread=lambda call: self._in_thread(name, call),
        )
        task = asyncio.create_task(self._run(name, node), name=name)
        self.managers[name] = Manager(name, disk, node, machine, transport, task)
        self._let_pause(self.managers[name])

    def _let_pause(self, manager: Manager) -> None:
        """A paused process does nothing, and does what is overdue when it goes on."""
        round_ = manager.node._round

        async def round_unless_paused() -> None:
            while manager.paused_until > self.time():  # noqa: ASYNC110 - it may be paused anew
                await asyncio.sleep(manager.paused_until - self.time())
            await round_()

        manager.node._round = round_unless_paused  # type: ignore[method-assign]

    async def _run(self, name: str, node: RaftNode) -> None:
        try:
            await node.run()
        except RaftStopped as error:
            self.violations.append(f"{name} stopped: {error}")
            return
        # It was voted out; its owner throws its state away.
        self._judge_removal(name, node.term)
        self.crash(name)
        self.disks[name] = Disk()

    def _judge_removal(self, name: str, term: int) -> None:
        # Also one whose joining never came to be agreed on may have begun to take itself for a member.
        if name not in self.asked_to_change:
            self.violations.append(f"{name} was told that it is removed, and nobody asked for it")
        for other in self.alive():
            core = other.node.core
            is_settled = core._configurations[-1][0] <= core.commit_index
            if core.leads and core.term >= term and is_settled and name in core.members:
                self.violations.append(f"{name} was told that it is removed, and has its vote")

    async def _in_thread(self, name: str, call: Callable[[], object]) -> object:
        """A slow disk; power may fail before it has what is written, or after and before anybody knows."""
        await asyncio.sleep(self.rng.uniform(0, self.sync_seconds[name]))
        await self._maybe_lose_power(name)
        result = call()
        await asyncio.sleep(self.rng.uniform(0, self.sync_seconds[name]))
        await self._maybe_lose_power(name)
        return result

    async def _maybe_lose_power(self, name: str) -> None:
        if self.rng.random() < self.power_loss_at_sync:
            # Often all in a rack: what is on one disk only is then on none.
            for other in self.rng.choice([[name], [name], self.names]):
                self.lose_power(other)
            await asyncio.sleep(1.0)

    def lose_power(self, name: str) -> None:
        """A crash, and a start some time later."""
        if name in self.managers:
            self.crash(name)
            self._later(self.rng.uniform(0.1, 2.5), self.come_back, name)

    def come_back(self, name: str) -> None:
        if self.disks[name].entries:
            self.start(name)

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
        """From `a` to `b`, now or, while it cannot be, some time later."""
        manager = self.managers.get(a)
        if manager is None or b not in manager.transport.peers or self.links[a, b].connected:
            return
        if b in self.managers and frozenset((a, b)) not in self.separated:
            self.set_connected(a, b, True)
        else:
            self._later(self.rng.uniform(0.05, RETRY_SECONDS_MAX), self._connect_again, a, b, manager)

    def _connect_again(self, a: str, b: str, caller: Manager) -> None:
        if self.managers.get(a) is caller:
            self.connect(a, b)

    def set_connected(self, a: str, b: str, up: bool) -> None:
        link = self.links[a, b]
        if link.connected == up:
            return
        link.connected = up
        link.in_flight.clear()
        link.epoch += 1
        manager = self.managers.get(a)
        if manager is None:
            return
        if up:
            manager.node.on_connected(b)
        else:
            manager.node.on_disconnected(b)
            self._later(self.rng.uniform(0.05, RETRY_SECONDS_MAX), self._connect_again, a, b, manager)

    def break_connection(self, a: str, b: str) -> None:
        """One direction; noticed a little later."""
        self.links[a, b].in_flight.clear()
        self._later(self.rng.uniform(0, 0.5), self.set_connected, a, b, False)

    def separate(self, a: str, b: str) -> None:
        self.separated.add(frozenset((a, b)))
        self.break_connection(a, b)
        self.break_connection(b, a)

    def reconnect(self, a: str, b: str) -> None:
        self.separated.discard(frozenset((a, b)))
        for x, y in ((a, b), (b, a)):
            self.links[x, y].stalled_until = 0.0
            self.set_connected(x, y, False)
            self.connect(x, y)

    def stall(self, a: str, b: str, seconds: float) -> None:
        link = self.links[a, b]
        link.stalled_until = max(link.stalled_until, self.time() + seconds)

    def pause(self, name: str, seconds: float) -> None:
        if name in self.managers:
            self.managers[name].paused_until = self.time() + seconds

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

    def spawn(self, client: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(client)  # type: ignore[arg-type]
        self.clients.add(task)
        task.add_done_callback(self.clients.discard)

    def submit(self, name: str, operation: bytes, *, retries: int = 0) -> None:
        self.spawn(self._write(name, operation, retries))

    async def _write(self, name: str, operation: bytes, retries: int) -> None:
        """Tries again, anywhere, while the outcome is unknown; a certain refusal then means nothing."""
        began = self.time()
        may_be_done = False
        for _ in range(retries + 1):
            manager = self.managers.get(name)
            name = self.rng.choice(self.names)
            if manager is None:
                await asyncio.sleep(self.rng.uniform(0.05, 0.5))
                continue
            try:
                position = await manager.node.propose(operation)
            except UnknownOutcome:
                may_be_done = True
                continue
            except SwarmletError:
                if not may_be_done:
                    self.refused.add(operation)
                    return
                await asyncio.sleep(self.rng.uniform(0.05, 0.5))
                continue
            assert isinstance(position, int)
            self.acknowledged[operation] = Acknowledged(position, began, self.time())
            return

    def read(self, name: str) -> None:
        self.spawn(self._read(name))

    async def _read(self, name: str) -> None:
        manager = self.managers.get(name)
        if manager is None:
            return
        newest = max((told.position for told in self.acknowledged.values()), default=0)
        try:
            await manager.node.barrier()
        except SwarmletError:
            return
        if len(manager.machine.operations) < newest:
            self.violations.append(
                f"{name} read {len(manager.machine.operations)} operations, {newest} were acknowledged before"
            )

    # ---- membership

    async def join(self, name: str, seconds: float = 20.0) -> None:
        """What a manager that wants to join does, until it is in or gives up."""
        end = self.time() + seconds
        self.asked_to_change.add(name)
        target = ""
        while self.time() < end:
            self.start(name)
            at = self.managers.get(target) or self.rng.choice(self.alive())
            target = ""
            try:
                async with asyncio.timeout(end - self.time()):
                    await at.node.add_member(pb.RaftMember(node_id=name, address=name))
                return
            except NotLeader as error:
                target = error.leader_address
            except (SwarmletError, TimeoutError):
                target = ""
            await asyncio.sleep(self.rng.uniform(0.05, 0.3))

    async def remove(self, name: str) -> None:
        leader = self.leader()
        if leader is None or leader.name == name or len(leader.node.members) < 3:
            return
        self.asked_to_change.add(name)
        try:
            await leader.node.remove_member(name)
        except SwarmletError:
            return

    async def hand_over(self, target: str) -> None:
        leader = self.leader()
        if leader is None:
            return
        try:
            await leader.node.transfer_leadership(target)
        except SwarmletError:
            return

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
