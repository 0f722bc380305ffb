"""PySyncObj's engine with its state under readable names: what every part of the protocol shares.

Never used by itself: `core.Core` is the protocol. Only this module and its heirs in
this package touch PySyncObj.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import pysyncobj.syncobj as engine
import structlog
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from pysyncobj.version import VERSION

from swarmlet.api import pb
from swarmlet.raft.agreement import StateMachine
from swarmlet.raft.journal import Entry, Journal
from swarmlet.raft.snapshot import Snapshot

if VERSION != "0.3.17":
    raise ImportError(f"PySyncObj {VERSION} found; the corrections in here are for exactly 0.3.17")

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2

DATA, NOOP, MEMBERSHIP = b"\x00", b"\x01", b"\x02"
"""First byte of a command; 0-2 are PySyncObj's own numbers for the same."""

ENTRIES_FOR_TRANSFERS_MAX = 50_000
"""Kept behind a snapshot while a follower that is sent one needs what comes after it."""
CONTACTS_MAX = 8

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RaftSettings:
    heartbeat_seconds: float = 0.1
    election_seconds_min: float = 0.5
    election_seconds_max: float = 1.0
    snapshot_entries: int = 10_000
    """Applied entries after which the log is folded into a snapshot."""
    snapshot_bytes: int = 32 << 20
    snapshot_chunk_bytes: int = 256 << 10
    slow_follower_entries: int = 500
    """Kept behind a snapshot: cheaper for a follower that is a little behind."""


class Outcome(Enum):
    """How a proposal ended when it was not applied here."""

    NOT_LEADER = "not leader"
    DISCARDED = "discarded"
    UNKNOWN = "unknown"
    REFUSED = "refused"


ProposalCallback = Callable[[object, Outcome | None], None]
SendFunction = Callable[[str, pb.RaftMessage, bool], None]
"""peer, message, after_sync"""


def use_clock(clock: Callable[[], float]) -> None:
    """Makes every engine of this process read another monotonic clock (seconds): for simulation."""
    engine.monotonicTime = clock


def engine_clock() -> Callable[[], float]:
    """The monotonic clock that the engines read now."""
    clock: Callable[[], float] = engine.monotonicTime
    return clock


class _NoTransport(Transport):  # type: ignore[misc]
    """PySyncObj wants one; all sending is done by `Core` itself."""

    def __init__(self) -> None:
        super().__init__(None, None, None)

    @property
    def ready(self) -> bool:
        return True

    def addNode(self, node: Node) -> None:  # noqa: N802 - PySyncObj's name
        raise AssertionError("membership is kept by Core")

    dropNode = addNode  # noqa: N815 - PySyncObj's name

    def send(self, node: Node, message: object) -> bool:
        raise AssertionError(f"PySyncObj's own message would leave: {message!r}")


class Flight:
    """What was sent to one follower and not confirmed yet: entries up to an index, and bytes."""

    def __init__(self) -> None:
        self._sent: deque[tuple[int, int]] = deque()
        self.bytes = 0

    def sent(self, last_index: int, size: int) -> None:
        self._sent.append((last_index, size))
        self.bytes += size

    def confirmed(self, index: int) -> None:
        while self._sent and self._sent[0][0] <= index:
            self.bytes -= self._sent.popleft()[1]


@dataclass
class SnapshotTransfer:
    """The leader's side of bringing one follower a snapshot."""

    data: bytes
    last_index: int
    last_term: int
    acknowledged: int = 0


@dataclass
class IncomingSnapshot:
    last_index: int
    last_term: int
    sender: str
    data: bytearray = field(default_factory=bytearray)


class EngineState(SyncObj):  # type: ignore[misc]
    """One manager's protocol state. Everything durable is in the journal and the snapshot given."""

    _SyncObj__otherNodes: set[Node]

    def __init__(
        self,
        *,
        node_id: str,
        journal: Journal,
        snapshot: Snapshot | None,
        machine: StateMachine,
        settings: RaftSettings,
        rng: random.Random,
        send: SendFunction,
        read_snapshot: Callable[[], bytes],
    ) -> None:
        """`machine` must hold the snapshot's state. Raises ValueError when log and snapshot disagree."""
        self.node_id = node_id
        self._machine = machine
        self._settings = settings
        self._rng = rng
        self._transmit = send
        self._read_snapshot = read_snapshot
        self._journal = journal
        self._votes: set[str] = set()
        self._pre_vote_term = 0
        self._leader_heard_at = float("-inf")
        self._waiting: dict[int, tuple[int, ProposalCallback]] = {}
        self._round = 0
        self._peer_rounds: dict[str, int] = {}
        self._replicate_now = False
        self._heartbeat_due = 0.0
        self._flights: dict[str, Flight] = {}
        self._contacts: dict[str, str] = {}
        self._learners: dict[str, str] = {}
        self._transfers: dict[str, SnapshotTransfer] = {}
        self._incoming: IncomingSnapshot | None = None
        self.pending_install: tuple[str, bytes] | None = None
        self._bytes_since_snapshot = 0
        self._snapshot_index = snapshot.last_index if snapshot else 1
        self.was_removed = False
        _fit_log_to_snapshot(journal, snapshot)
        self.generation = snapshot.generation if snapshot else 0
        base = {m.node_id: m.address for m in snapshot.members} if snapshot else {}
        self._configurations: list[tuple[int, dict[str, str]]] = [(self._snapshot_index, base)]
        self._start_engine(journal)
        for entry in journal[:]:
            if entry[1] > self._snapshot_index:
                self._note_membership(entry)
        self._adopt_configuration()

    def _start_engine(self, journal: Journal) -> None:
        settings = self._settings
        conf = SyncObjConf(
            autoTick=False,
            useFork=False,
            dynamicMembershipChange=True,
            appendEntriesPeriod=settings.heartbeat_seconds,
            raftMinTimeout=settings.election_seconds_min,
            raftMaxTimeout=settings.election_seconds_max,
            logCompactionMinEntries=1 << 62,
            logCompactionMinTime=1 << 62,
        )
        create_journal = engine.createJournal
        engine.createJournal = lambda _: journal
        try:
            super().__init__(Node(self.node_id), [], conf=conf, nodeClass=Node, transport=_NoTransport())
        finally:
            engine.createJournal = create_journal
        self._SyncObj__raftLastApplied = self._snapshot_index
        commit = min(journal.getRaftCommitIndex(), self.last_index)
        self._set_commit(max(commit, self._snapshot_index))

    # ---- PySyncObj's state under readable names

    @property
    def state(self) -> int:
        return int(self._SyncObj__raftState)

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def commit_index(self) -> int:
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    @property
    def last_index(self) -> int:
        return self._journal[-1][1]

    @property
    def leader_id(self) -> str | None:
        leader = self._SyncObj__raftLeader
        return None if leader is None else str(leader.id)

    @property
    def members(self) -> Mapping[str, str]:
        """Voting managers and their addresses, as the newest entry in the log says."""
        return self._configurations[-1][1]

    @property
    def peers(self) -> Mapping[str, str]:
        """Everybody this manager keeps a connection to."""
        known = {**self._learners, **self.members, **self._contacts}
        return {k: v for k, v in known.items() if k != self.node_id}

    @property
    def leads(self) -> bool:
        """Whether this is the leader and it has applied everything its predecessors committed."""
        return self.state == LEADER and self.applied_index >= self._SyncObj__noopIDx

    def _now(self) -> float:
        return float(engine.monotonicTime())

    def _set_commit(self, index: int) -> None:
        self._SyncObj__raftCommitIndex = index
        self._journal.setRaftCommitIndex(index)

    def _entry(self, index: int) -> Entry | None:
        position = index - self._journal[0][1]
        return self._journal[position] if 0 <= position < len(self._journal) else None

    # ---- connections

    def peer_connected(self, peer: str) -> None:
        self._SyncObj__connectedNodes.add(Node(peer))
        node = Node(peer)
        if node in self._SyncObj__raftMatchIndex:
            # Where nothing is confirmed yet, the follower says where to go on.
            match = self._SyncObj__raftMatchIndex[node]
            self._SyncObj__raftNextIndex[node] = (match or self.last_index) + 1
        self._transfers.pop(peer, None)
        self._flights.pop(peer, None)
        self._replicate_now = True

    def peer_disconnected(self, peer: str) -> None:
        self._SyncObj__connectedNodes.discard(Node(peer))
        self._transfers.pop(peer, None)

    def _note_contact(self, sender: str, address: str) -> None:
        """Keeps in touch with who waits for an answer, although the log here does not know where it is."""
        if not address or self.peers.get(sender) == address:
            return
        self._contacts.pop(sender, None)
        self._contacts[sender] = address
        while len(self._contacts) > CONTACTS_MAX:
            self._contacts.pop(next(iter(self._contacts)))

    # ---- the log and the members

    def _append(self, entry: Entry) -> None:
        self._journal.add(*entry)
        self._bytes_since_snapshot += len(entry[0])
        if self._note_membership(entry):
            self._adopt_configuration()

    def _note_membership(self, entry: Entry) -> bool:
        command, index, _ = entry
        if command[:1] != MEMBERSHIP:
            return False
        change = pb.MembershipChange.FromString(command[1:])
        members = dict(self.members)
        if change.action == pb.MembershipChange.RESET:
            members = {change.member.node_id: change.member.address}
            self.generation = max(self.generation, change.generation)
        elif change.action == pb.MembershipChange.REMOVE:
            members.pop(change.member.node_id, None)
        else:
            members[change.member.node_id] = change.member.address
        self._configurations.append((index, members))
        return True

    def _adopt_configuration(self) -> None:
        others = {Node(m) for m in self.members if m != self.node_id}
        for gone in self._SyncObj__otherNodes - others:
            self._forget_progress(gone.id)
        for new in others - self._SyncObj__otherNodes:
            self._learners.pop(new.id, None)
            self._SyncObj__raftNextIndex.setdefault(new, self.last_index + 1)
            self._SyncObj__raftMatchIndex.setdefault(new, 0)
            self._SyncObj__lastResponseTime.setdefault(new, self._now())
        self._SyncObj__otherNodes = others
        self._contacts.clear()

    def _forget_progress(self, node_id: str) -> None:
        for progress in (
            self._SyncObj__raftNextIndex,
            self._SyncObj__raftMatchIndex,
            self._SyncObj__lastResponseTime,
        ):
            progress.pop(Node(node_id), None)
        for by_id in (self._transfers, self._peer_rounds, self._flights):
            by_id.pop(node_id, None)

    def _quorum(self) -> int:
        return len(self.members) // 2 + 1

    def _majority_value(self, of_others: Callable[[str], float], own: float) -> float:
        """The largest value that a majority of the members has reached."""
        values = sorted((own if m == self.node_id else of_others(m) for m in self.members), reverse=True)
        return values[self._quorum() - 1]

    def _send(self, peer: str, *, after_sync: bool = True, **content: object) -> None:
        message = pb.RaftMessage(term=self.term, **content)  # type: ignore[arg-type]
        self._send_message(peer, message, after_sync or self._journal.term_pending)

    def _send_message(self, peer: str, message: pb.RaftMessage, after_sync: bool) -> None:
        message.generation = self.generation
        self._transmit(peer, message, after_sync)

    @property
    def _own_address(self) -> str:
        return self.members.get(self.node_id, "")

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802 - overrides PySyncObj's
        settings = self._settings
        return self._rng.uniform(settings.election_seconds_min, settings.election_seconds_max)

    def _postpone_election(self) -> None:
        self._SyncObj__raftElectionDeadline = self._now() + self._SyncObj__generateRaftTimeout()

    def _become_follower(self, term: int, leader: str | None) -> None:
        if self.state == LEADER:
            self._answer_all_unknown()
        if term > self.term:
            self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__raftLeader = None if leader is None else Node(leader)
        self._SyncObj__setState(FOLLOWER)
        self._pre_vote_term = 0
        for learner in self._learners:
            # What it confirmed holds for this leadership only.
            self._forget_progress(learner)
        self._learners.clear()
        self._transfers.clear()

    def _answer_all_unknown(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, callback in waiting.values():
            callback(None, Outcome.UNKNOWN)

    # ---- compaction

    def snapshot_is_due(self) -> bool:
        applied = self.applied_index - self._snapshot_index
        return applied >= self._settings.snapshot_entries or (
            applied > 0 and self._bytes_since_snapshot >= self._settings.snapshot_bytes
        )

    def begin_snapshot(self) -> tuple[pb.SnapshotHeader, Callable[[], bytes]]:
        """What a snapshot of the applied state covers, and how to encode it (in a thread)."""
        index = self.applied_index
        entry = self._entry(index)
        assert entry is not None
        members = [c for c in self._configurations if c[0] <= index][-1][1]
        header = pb.SnapshotHeader(
            last_index=index,
            last_term=entry[2],
            members=[pb.RaftMember(node_id=k, address=v) for k, v in members.items()],
            generation=self.generation,
        )
        self._bytes_since_snapshot = 0
        return header, self._machine.snapshot()

    def finish_snapshot(self, last_index: int) -> None:
        """Forgets log entries that the snapshot, now on disk, makes unneeded."""
        if last_index <= self._snapshot_index:
            return
        self._snapshot_index = last_index
        covered = [c for c in self._configurations if c[0] <= last_index][-1]
        self._configurations = [covered, *(c for c in self._configurations if c[0] > last_index)]
        # A snapshot that is on its way to somebody is worth nothing without what follows it.
        wanted = min((t.last_index for t in self._transfers.values()), default=last_index)
        keep_from = min(last_index - self._settings.slow_follower_entries, wanted)
        keep_from = max(self._journal[0][1], keep_from, last_index - ENTRIES_FOR_TRANSFERS_MAX)
        self._journal.deleteEntriesTo(keep_from - self._journal[0][1])


def _fit_log_to_snapshot(journal: Journal, snapshot: Snapshot | None) -> None:
    """After a crash between writing a snapshot and trimming the log, makes the log continue the snapshot."""
    if snapshot is None:
        if len(journal) and journal[0][1] > 1:
            raise ValueError(
                f"the journal begins at entry {journal[0][1]} and the snapshot before it is missing"
            )
        return
    if len(journal) and journal[0][1] > snapshot.last_index:
        raise ValueError(
            f"the journal begins at entry {journal[0][1]}, the snapshot ends at {snapshot.last_index}"
        )
    position = snapshot.last_index - journal[0][1] if len(journal) else -1
    if 0 <= position < len(journal) and journal[position][2] == snapshot.last_term:
        return
    journal.clear()
    journal.add(NOOP, snapshot.last_index, snapshot.last_term)
