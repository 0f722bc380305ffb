"""Managers' cores driven by hand: the script decides on every message, round, sync and second."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations

from swarmlet.api import pb
from swarmlet.raft import engine
from swarmlet.raft.core import Core
from swarmlet.raft.engine import DATA, LEADER, MEMBERSHIP, Outcome, RaftSettings
from swarmlet.raft.snapshot import Snapshot, SnapshotCorrupt, decode
from tests.sim.disks import Disk, DiskFiles

CERTAINLY_NOT = (Outcome.NOT_LEADER, Outcome.DISCARDED, Outcome.REFUSED)


class ListMachine:
    """An append-only list; "boom" fails, as a defect in a state machine would."""

    def __init__(self) -> None:
        self.operations: list[bytes] = []

    def apply(self, index: int, data: bytes) -> int:
        if data == b"boom":
            raise KeyError("boom")
        self.operations.append(data)
        return len(self.operations)

    def snapshot(self) -> Callable[[], bytes]:
        copy = list(self.operations)
        return lambda: b"\n".join(copy)

    def restore(self, index: int, data: bytes) -> None:
        self.operations = data.split(b"\n") if data else []


@dataclass
class Told:
    """What a caller was told about its write."""

    data: bytes
    times: int = 0
    result: object = None
    outcome: Outcome | None = None

    @property
    def position(self) -> int:
        return self.result if isinstance(self.result, int) else 0

    @property
    def acknowledged(self) -> bool:
        return self.times > 0 and self.outcome is None and not isinstance(self.result, Exception)

    def answer(self, result: object, outcome: Outcome | None) -> None:
        self.times += 1
        self.result, self.outcome = result, outcome


class Player:
    """One manager: its core, and the disk that survives it."""

    def __init__(self, name: str, disk: Disk, group: Group) -> None:
        self.name = name
        self.disk = disk
        self.files = DiskFiles(disk)
        self.machine = ListMachine()
        self.proposals: deque[tuple[bytes, Callable[[object, Outcome | None], None]]] = deque()
        self._held: list[tuple[str, bytes]] = []
        self._group = group
        if self.files.snapshot is not None:
            self.machine.restore(self.files.snapshot.last_index, self.files.snapshot.state)
        self.core = Core(
            node_id=name,
            journal=self.files.journal,
            snapshot=self.files.snapshot,
            machine=self.machine,
            settings=group.settings,
            rng=random.Random(name),
            send=self._send,
            read_snapshot=self.files.snapshot_file.read,
        )

    def _send(self, peer: str, message: pb.RaftMessage, after_sync: bool) -> None:
        if after_sync or any(p == peer for p, _ in self._held):
            self._held.append((peer, message.SerializeToString()))
        else:
            self._group.post(self.name, peer, message.SerializeToString())

    def round(self) -> None:
        """What a driver does with what came in, once."""
        self.core.take_proposals(self.proposals)
        self.files.journal.onOneSecondTimer()
        self.core.replicate()
        self.install()
        self.files.journal.sync()
        self.release()
        self.core.advance()
        if not self.files.journal.dirty:
            self.release()
        self._group.note_leader(self)
        for command, index, term in self.files.journal[:]:
            if self.core._snapshot_index < index <= self.core.applied_index:
                self._group.note_applied(self.name, index, b"%d " % term + command)

    def install(self) -> None:
        if self.core.pending_install is None:
            return
        sender, data = self.core.pending_install
        self.core.pending_install = None
        try:
            snapshot = decode(data, sender)
        except SnapshotCorrupt:
            return
        self.files.snapshot_file.write(data)
        self.core.install(sender, snapshot)

    def release(self) -> None:
        held, self._held = self._held, []
        for peer, data in held:
            self._group.post(self.name, peer, data)

    def fold(self) -> None:
        """Takes a snapshot of what is applied and forgets the log before it."""
        header, encode = self.core.begin_snapshot()
        snapshot = Snapshot(header.last_index, header.last_term, list(header.members), encode())
        self.files.snapshot_file.write(snapshot.encode())
        self.core.finish_snapshot(header.last_index)
        # Scenarios want a leader that really lacks the entries, not one kind to slow followers.
        journal = self.files.journal
        journal.deleteEntriesTo(header.last_index - journal[0][1])
        journal.sync()

    def log(self) -> list[bytes]:
        return [e[0][1:] for e in self.files.journal[:] if e[0][:1] == DATA]


class Group:
    """Managers, the messages between them that nobody has delivered yet, and one clock."""

    def __init__(self, names: str, *, members: str = "", settings: RaftSettings | None = None) -> None:
        """One letter a manager; `members` begin with votes (all do when it is empty)."""
        self.settings = settings or RaftSettings()
        self.now = 1000.0
        self.posted: dict[tuple[str, str], deque[bytes]] = {p: deque() for p in permutations(names, 2)}
        self.told: list[Told] = []
        self._applied: dict[int, tuple[str, bytes]] = {}
        self._leaders: dict[int, str] = {}
        self._seen: list[str] = []
        self.disks = {name: Disk() for name in names}
        self.players: dict[str, Player] = {}
        for name in members or names:
            self.disks[name].found(list(members or names))
        for name in names:
            self.start(name)

    def start(self, name: str) -> None:
        self.players[name] = Player(name, self.disks[name], self)
        for other in self.players:
            if other != name:
                self.players[name].core.peer_connected(other)
                self.players[other].core.peer_connected(name)

    def crash(self, name: str) -> None:
        """Everything unsynced is lost, and everything on its way to and from it."""
        del self.players[name]
        for (a, b), queue in self.posted.items():
            if name in (a, b):
                queue.clear()
        for player in self.players.values():
            player.core.peer_disconnected(name)

    def core(self, name: str) -> Core:
        return self.players[name].core

    # ---- messages

    def post(self, a: str, b: str, data: bytes) -> None:
        self.posted[a, b].append(data)

    def receive(self, a: str, b: str, data: bytes) -> None:
        if b in self.players:
            self.players[b].core.receive(a, pb.RaftMessage.FromString(data))

    def deliver(self, a: str, b: str, count: int | None = None) -> None:
        """The first `count` messages (all when None) from `a` to `b`; then `b` has its round."""
        queue = self.posted[a, b]
        for _ in range(len(queue) if count is None else count):
            self.receive(a, b, queue.popleft())
        if b in self.players:
            self.players[b].round()

    def lose(self, *keep: tuple[str, str]) -> None:
        """Drops everything on its way, but for the directions to keep."""
        for direction, queue in self.posted.items():
            if direction not in keep:
                queue.clear()

    def talk(self, names: str, rounds: int = 12) -> None:
        """Lets these managers speak with each other, and nobody else, for a while."""
        for _ in range(rounds):
            self.pass_time(0.03)
            for name in names:
                self.players[name].round()
            for a, b in permutations(names, 2):
                self.deliver(a, b)

    # ---- time and roles

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def elect(self, name: str, voters: str, *, until_committed: bool = True) -> None:
        """Makes `name` the leader by the votes of `voters`, and nobody hears anything else."""
        assert self.try_to_elect(name, voters, until_committed), f"{name} was not elected"

    def try_to_elect(self, name: str, voters: str, until_committed: bool = True) -> bool:
        """A candidate that did not know the term yet needs more than one attempt."""
        return any(self._campaign(name, voters, until_committed) for _ in range(3))

    def _campaign(self, name: str, voters: str, until_committed: bool) -> bool:
        self.pass_time(self.settings.election_seconds_max * 2)
        for voter in voters:
            # Who led so far hears nobody and gives up; nobody else tries.
            self.core(voter)._postpone_election()
            self.players[voter].round()
            self.core(voter)._postpone_election()
        self.lose_between(name, voters)
        self.core(name)._SyncObj__raftElectionDeadline = self.now
        self.players[name].round()
        for _ in range(3):
            for voter in voters:
                if self.core(name).state == LEADER and not until_committed:
                    return True
                self.deliver(name, voter)
                self.deliver(voter, name)
        return self.core(name).state == LEADER

    def lose_between(self, name: str, others: str) -> None:
        for other in others:
            self.posted[name, other].clear()
            self.posted[other, name].clear()

    def propose(self, name: str, data: bytes) -> Told:
        told = Told(data)
        self.told.append(told)
        self.players[name].proposals.append((DATA + data, told.answer))
        return told

    def change(self, name: str, action: pb.MembershipChange.Action.ValueType, member: str) -> Told:
        change = pb.MembershipChange(action=action, member=pb.RaftMember(node_id=member, address=member))
        told = Told(change.SerializeToString())
        self.players[name].proposals.append((MEMBERSHIP + told.data, told.answer))
        return told

    # ---- what must hold

    def note_applied(self, name: str, index: int, data: bytes) -> None:
        by, first = self._applied.setdefault(index, (name, data))
        if first != data and len(self._seen) < 10:
            self._seen.append(f"{by} applied {first!r} at {index}, {name} {data!r}")

    def note_leader(self, player: Player) -> None:
        if player.core.state == LEADER:
            first = self._leaders.setdefault(player.core.term, player.name)
            if first != player.name:
                self._seen.append(f"{first} and {player.name} both led term {player.core.term}")

    def violations(self) -> list[str]:
        """Compares what callers were told with what the managers have applied."""
        found = list(self._seen)
        applied = {name: player.machine.operations for name, player in self.players.items()}
        longest = max(applied.values(), key=len)
        for name, operations in applied.items():
            if operations != longest[: len(operations)]:
                found.append(f"{name} applied {operations}, another {longest}")
        for told in self.told:
            if told.acknowledged and told.data not in longest:
                found.append(f"acknowledged {told.data!r} is lost")
            if told.outcome in CERTAINLY_NOT and told.data in longest:
                found.append(f"{told.data!r} was refused and is there")
            if told.times > 1:
                found.append(f"{told.data!r} was answered {told.times} times")
            if told.acknowledged and longest[told.position - 1 : told.position] != [told.data]:
                found.append(f"{told.data!r} was told {told.result!r}, which is another's result")
        return found


@contextmanager
def scripted(names: str, *, members: str = "", settings: RaftSettings | None = None) -> Iterator[Group]:
    """A group on a clock of its own."""
    before = engine.engine_clock()
    group: Group | None = None
    engine.use_clock(lambda: group.now if group is not None else 1000.0)
    try:
        group = Group(names, members=members, settings=settings)
        yield group
    finally:
        engine.use_clock(before)
