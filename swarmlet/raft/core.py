"""The protocol: PySyncObj's engine with what it gets wrong put right.

Used by `node` only, from one thread at a time. One round of a manager is

    receive(...) for what came in, take_proposals(...), replicate()
    -> the journal is synced ->
    advance()

so that `advance`, which counts votes for entries and answers callers, only ever sees
what is on disk. Messages that promise something about the log, the term or the vote
are marked `after_sync`; the node sends those once the sync is done.

What differs from PySyncObj 0.3.17, by the defect it would otherwise have:
  - late acks: nextIndex never falls below matchIndex + 1, and a follower only
    truncates at a real conflict, never what it has committed;
  - acks and snapshot replies carry the term, stale ones are ignored;
  - a follower's commit index only covers entries verified against this leader;
  - a rejected append names where to go on, so a conflicting tail is always found;
  - one membership change at a time, undone when its entry is truncated;
  - a caller is always answered: done, not done, or unknown;
  - an exception of the state machine is that entry's result;
  - a snapshot is installed only after its checksum was verified and it is on disk;
  - votes are a set of voters, and only members' votes count;
  - pre-vote and leader stickiness: a node that returns, or hears nobody, does not
    depose a leader that a majority hears;
  - a leader that a majority does not answer steps down.
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

APPEND_BYTES_MAX = 1 << 20
APPEND_ENTRIES_MAX = 1024
IN_FLIGHT_ENTRIES_MAX = 16_384
SNAPSHOT_CHUNK_BYTES = 256 << 10
APPLY_ENTRIES_MAX = 256
"""Entries applied in one round, so that a long backlog does not hold up heartbeats."""
ENTRIES_FOR_SLOW_FOLLOWERS = 500
LEARNER_LAG_ENTRIES_MAX = 200

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RaftSettings:
    heartbeat_seconds: float = 0.1
    election_seconds_min: float = 0.5
    election_seconds_max: float = 1.0
    snapshot_entries: int = 10_000
    """Applied entries after which the log is folded into a snapshot."""
    snapshot_bytes: int = 32 << 20


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


@dataclass
class _SnapshotTransfer:
    """The leader's side of bringing one follower a snapshot."""

    data: bytes
    last_index: int
    last_term: int
    acknowledged: int = 0


@dataclass
class _IncomingSnapshot:
    last_index: int
    last_term: int
    sender: str
    data: bytearray = field(default_factory=bytearray)


class Core(SyncObj):  # type: ignore[misc]
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
        self._send_message = send
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
        self._commit_sent: dict[str, int] = {}
        self._learners: dict[str, str] = {}
        self._transfers: dict[str, _SnapshotTransfer] = {}
        self._incoming: _IncomingSnapshot | None = None
        self.pending_install: tuple[str, bytes] | None = None
        self._bytes_since_snapshot = 0
        self._snapshot_index = snapshot.last_index if snapshot else 1
        self.was_removed = False
        _fit_log_to_snapshot(journal, snapshot)
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
        return {k: v for k, v in {**self._learners, **self.members}.items() if k != self.node_id}

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
            self._SyncObj__raftNextIndex[node] = max(self._SyncObj__raftMatchIndex[node] + 1, 2)
        self._transfers.pop(peer, None)
        self._commit_sent.pop(peer, None)
        self._replicate_now = True

    def peer_disconnected(self, peer: str) -> None:
        self._SyncObj__connectedNodes.discard(Node(peer))
        self._transfers.pop(peer, None)

    # ---- proposing

    def take_proposals(
        self, proposals: deque[tuple[bytes, ProposalCallback]], entries_max: int = 4096
    ) -> None:
        """Moves proposals (command byte included) into the leader's log, or refuses them."""
        taken = 0
        while proposals and taken < entries_max:
            command, callback = proposals.popleft()
            taken += 1
            if self.state != LEADER:
                callback(None, Outcome.NOT_LEADER)
            elif command[:1] == MEMBERSHIP and not self._may_change_membership(command):
                callback(None, Outcome.REFUSED)
            else:
                index = self.last_index + 1
                self._append((command, index, self.term))
                self._waiting[index] = (self.term, callback)
                self._replicate_now = True

    def _append(self, entry: Entry) -> None:
        self._journal.add(*entry)
        self._bytes_since_snapshot += len(entry[0])
        if self._note_membership(entry):
            self._adopt_configuration()

    def _may_change_membership(self, command: bytes) -> bool:
        if not self.leads or self._configurations[-1][0] > self.commit_index:
            return False
        change = pb.MembershipChange.FromString(command[1:])
        is_removal = change.action == pb.MembershipChange.REMOVE
        return not (is_removal and change.member.node_id == self.node_id)

    # ---- membership

    def add_learner(self, member: pb.RaftMember) -> None:
        """Begins to bring a manager up to date that does not count yet. Leader only, not replicated."""
        if member.node_id in self.members:
            return
        self._learners[member.node_id] = member.address
        node = Node(member.node_id)
        if node not in self._SyncObj__raftMatchIndex:
            self._SyncObj__raftNextIndex[node] = self.last_index + 1
            self._SyncObj__raftMatchIndex[node] = 0
            self._SyncObj__lastResponseTime[node] = self._now()

    def drop_learner(self, node_id: str) -> None:
        if self._learners.pop(node_id, None) is not None and node_id not in self.members:
            self._forget_progress(node_id)

    def learner_is_current(self, node_id: str) -> bool:
        match = int(self._SyncObj__raftMatchIndex.get(Node(node_id), 0))
        return match > 0 and match >= self.commit_index - LEARNER_LAG_ENTRIES_MAX

    def _note_membership(self, entry: Entry) -> bool:
        command, index, _ = entry
        if command[:1] != MEMBERSHIP:
            return False
        change = pb.MembershipChange.FromString(command[1:])
        members = dict(self.members)
        if change.action == pb.MembershipChange.REMOVE:
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

    def _forget_progress(self, node_id: str) -> None:
        for progress in (
            self._SyncObj__raftNextIndex,
            self._SyncObj__raftMatchIndex,
            self._SyncObj__lastResponseTime,
        ):
            progress.pop(Node(node_id), None)
        for by_id in (self._transfers, self._peer_rounds, self._commit_sent):
            by_id.pop(node_id, None)

    def _quorum(self) -> int:
        return len(self.members) // 2 + 1

    def _majority_value(self, of_others: Callable[[str], float], own: float) -> float:
        """The largest value that a majority of the members has reached."""
        values = sorted((own if m == self.node_id else of_others(m) for m in self.members), reverse=True)
        return values[self._quorum() - 1]

    # ---- receiving

    def receive(self, sender: str, message: pb.RaftMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "request_vote":
            self._on_request_vote(sender, message.term, message.request_vote)
        elif kind == "vote_reply":
            self._on_vote_reply(sender, message.term, message.vote_reply)
        elif message.term < self.term:
            if kind in ("append_entries", "snapshot_chunk"):
                # Tells a leader of the past that its time is over.
                self._send(sender, append_reply=pb.AppendReply(next_index=self.last_index + 1))
        elif kind == "append_entries":
            self._follow(sender, message.term)
            self._on_append(sender, message.append_entries)
        elif kind == "snapshot_chunk":
            self._follow(sender, message.term)
            self._on_snapshot_chunk(sender, message.snapshot_chunk)
        elif message.term > self.term:
            self._become_follower(message.term, None)
        elif kind == "append_reply":
            self._on_append_reply(sender, message.append_reply)
        elif kind == "snapshot_reply":
            self._on_snapshot_reply(sender, message.snapshot_reply)
        elif kind == "timeout_now" and sender == self.leader_id:
            self._start_election(transfer=True)

    def _send(self, peer: str, *, after_sync: bool = True, **content: object) -> None:
        message = pb.RaftMessage(term=self.term, **content)  # type: ignore[arg-type]
        self._send_message(peer, message, after_sync or self._journal.term_pending)

    # ---- elections

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
        self._learners.clear()
        self._transfers.clear()

    def _follow(self, leader: str, term: int) -> None:
        if term > self.term or self.state != FOLLOWER or self.leader_id != leader:
            self._become_follower(term, leader)
        self._leader_heard_at = self._now()
        self._pre_vote_term = 0
        self._postpone_election()

    def _hears_a_leader(self) -> bool:
        if self.state == LEADER:
            return True
        return (
            self.leader_id is not None
            and self._now() - self._leader_heard_at < self._settings.election_seconds_min
        )

    def _campaign(self) -> None:
        """Asks whether an election could be won before it disturbs anybody with a new term."""
        self._postpone_election()
        self._SyncObj__raftLeader = None
        if self.state == CANDIDATE:
            self._SyncObj__setState(FOLLOWER)
        self._votes = {self.node_id}
        self._pre_vote_term = self.term + 1
        if len(self._votes) >= self._quorum():
            self._start_election()
            return
        self._ask_for_votes(self._pre_vote_term, pre_vote=True, transfer=False)

    def _start_election(self, *, transfer: bool = False) -> None:
        self._pre_vote_term = 0
        self._postpone_election()
        self._SyncObj__raftLeader = None
        self._SyncObj__setState(CANDIDATE)
        self._SyncObj__setCurrentTerm(self.term + 1, self.node_id)
        self._votes = {self.node_id}
        if len(self._votes) >= self._quorum():
            self._lead()
            return
        self._ask_for_votes(self.term, pre_vote=False, transfer=transfer)

    def _ask_for_votes(self, term: int, *, pre_vote: bool, transfer: bool) -> None:
        request = pb.RequestVote(
            last_log_index=self.last_index,
            last_log_term=self._journal[-1][2],
            pre_vote=pre_vote,
            transfer=transfer,
        )
        for peer in self.members:
            if peer != self.node_id:
                self._send_message(peer, pb.RaftMessage(term=term, request_vote=request), True)

    def _on_request_vote(self, sender: str, term: int, request: pb.RequestVote) -> None:
        mine = (self._journal[-1][2], self.last_index)
        is_current = (request.last_log_term, request.last_log_index) >= mine
        if request.pre_vote:
            granted = term > self.term and is_current and not self._hears_a_leader()
            reply = pb.VoteReply(pre_vote=True, granted=granted)
            answer = pb.RaftMessage(term=term if granted else self.term, vote_reply=reply)
            self._send_message(sender, answer, True)
            return
        if term > self.term:
            if self._hears_a_leader() and not request.transfer:
                return
            self._become_follower(term, None)
        vote = self._SyncObj__votedForNodeId
        granted = term == self.term and is_current and self.state == FOLLOWER and vote in (None, sender)
        if granted:
            self._SyncObj__setCurrentTerm(term, sender)
            self._postpone_election()
        self._send(sender, vote_reply=pb.VoteReply(granted=granted))

    def _on_vote_reply(self, sender: str, term: int, reply: pb.VoteReply) -> None:
        if sender not in self.members:
            return
        if not reply.granted:
            if term > self.term:
                self._become_follower(term, None)
            return
        if reply.pre_vote:
            if self._pre_vote_term == term and self.state == FOLLOWER:
                self._votes.add(sender)
                if self._votes_suffice():
                    self._start_election()
        elif self.state == CANDIDATE and term == self.term:
            self._votes.add(sender)
            if self._votes_suffice():
                self._lead()

    def _votes_suffice(self) -> bool:
        return len(self._votes & self.members.keys()) >= self._quorum()

    def _lead(self) -> None:
        self._peer_rounds.clear()
        self._commit_sent.clear()
        self._SyncObj__onBecomeLeader()

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802 - overrides PySyncObj's
        self._replicate_now = True

    def transfer_leadership(self, target: str) -> bool:
        """Asks `target` to take over; False when it is not ready for it."""
        match = self._SyncObj__raftMatchIndex.get(Node(target), 0)
        if self.state != LEADER or target not in self.members or match != self.last_index:
            return False
        self._send(target, timeout_now=pb.TimeoutNow())
        return True

    # ---- replicating: the leader

    def replicate(self) -> None:
        """Sends what followers lack, the commit index when it moved, and heartbeats when they are due."""
        now = self._now()
        is_due = now >= self._heartbeat_due
        if self.state != LEADER or not (is_due or self._replicate_now):
            return
        self._replicate_now = False
        if is_due:
            self._heartbeat_due = now + self._settings.heartbeat_seconds
        self._round += 1
        for peer in self.peers:
            if Node(peer) in self._SyncObj__connectedNodes:
                self._replicate_to(peer)

    def _replicate_to(self, peer: str) -> None:
        node = Node(peer)
        next_index = self._SyncObj__raftNextIndex[node]
        if next_index <= self._journal[0][1]:
            self._send_snapshot(peer)
            return
        self._transfers.pop(peer, None)
        in_flight = next_index - self._SyncObj__raftMatchIndex[node]
        must_speak = True
        while must_speak or (next_index <= self.last_index and in_flight < IN_FLIGHT_ENTRIES_MAX):
            entries = self._entries_for(next_index)
            previous = self._entry(next_index - 1)
            assert previous is not None
            append = pb.AppendEntries(
                commit_index=self.commit_index,
                prev_index=previous[1],
                prev_term=previous[2],
                entries=[pb.LogEntry(index=i, term=t, command=c) for c, i, t in entries],
                round=self._round,
            )
            self._send(peer, after_sync=False, append_entries=append)
            next_index += len(entries)
            in_flight += len(entries)
            must_speak = False
        self._SyncObj__raftNextIndex[node] = next_index
        self._commit_sent[peer] = self.commit_index

    def _entries_for(self, next_index: int) -> list[Entry]:
        start = next_index - self._journal[0][1]
        entries = self._journal[start : start + APPEND_ENTRIES_MAX]
        size = 0
        for count, entry in enumerate(entries):
            size += len(entry[0])
            if size > APPEND_BYTES_MAX and count > 0:
                return entries[:count]
        return entries

    def _on_append_reply(self, sender: str, reply: pb.AppendReply) -> None:
        node = Node(sender)
        if self.state != LEADER or node not in self._SyncObj__raftMatchIndex:
            return
        self._heard_from(sender, reply.round)
        match, next_ = self._SyncObj__raftMatchIndex, self._SyncObj__raftNextIndex
        if reply.success:
            if reply.next_index - 1 <= self.last_index:
                match[node] = max(match[node], reply.next_index - 1)
                next_[node] = max(next_[node], match[node] + 1)
                self._transfers.pop(sender, None)
        elif reply.reset:
            next_[node] = max(min(reply.next_index, next_[node]), match[node] + 1)
            self._replicate_now = True
        if next_[node] <= self.last_index:
            self._replicate_now = True

    def _heard_from(self, peer: str, round_: int) -> None:
        self._SyncObj__lastResponseTime[Node(peer)] = self._now()
        self._peer_rounds[peer] = max(self._peer_rounds.get(peer, 0), round_)

    def _send_snapshot(self, peer: str) -> None:
        transfer = self._transfers.get(peer)
        if transfer is None:
            data = self._read_snapshot()
            transfer = _SnapshotTransfer(data, self._snapshot_index, self._snapshot_term())
            self._transfers[peer] = transfer
            self._send_chunk(peer, transfer, SNAPSHOT_CHUNK_BYTES)
        else:
            # Says that the leader is alive; the next part follows the reply to the last.
            self._send_chunk(peer, transfer, 0)

    def _send_chunk(self, peer: str, transfer: _SnapshotTransfer, size: int) -> None:
        start = transfer.acknowledged
        chunk = pb.SnapshotChunk(
            last_index=transfer.last_index,
            last_term=transfer.last_term,
            offset=start,
            data=transfer.data[start : start + size],
            last=size > 0 and start + size >= len(transfer.data),
            round=self._round,
        )
        self._send(peer, after_sync=False, snapshot_chunk=chunk)

    def _on_snapshot_reply(self, sender: str, reply: pb.SnapshotReply) -> None:
        if self.state != LEADER or Node(sender) not in self._SyncObj__raftMatchIndex:
            return
        self._heard_from(sender, reply.round)
        transfer = self._transfers.get(sender)
        if transfer is None or transfer.last_index != reply.last_index:
            return
        if reply.next_offset != transfer.acknowledged and reply.next_offset < len(transfer.data):
            transfer.acknowledged = reply.next_offset
            self._send_chunk(sender, transfer, SNAPSHOT_CHUNK_BYTES)

    def _snapshot_term(self) -> int:
        entry = self._entry(self._snapshot_index)
        assert entry is not None, "the log keeps the entry that the snapshot ends with"
        return entry[2]

    # ---- replicating: the follower

    def _on_append(self, sender: str, append: pb.AppendEntries) -> None:
        entries: list[Entry] = [(e.command, e.index, e.term) for e in append.entries]
        previous, previous_term = append.prev_index, append.prev_term
        last = entries[-1][1] if entries else previous
        if previous < self.commit_index:
            # What is committed is known to match: begin behind it.
            entries = [e for e in entries if e[1] > self.commit_index]
            previous = min(self.commit_index, last)
            own = self._entry(previous)
            previous_term = own[2] if own is not None else previous_term
        elif (own := self._entry(previous)) is None or own[2] != previous_term:
            self._reject(sender, append, own)
            return
        while entries and (own := self._entry(entries[0][1])) is not None and own[2] == entries[0][2]:
            del entries[0]
        if entries:
            self._truncate_from(entries[0][1])
            for entry in entries:
                self._append(entry)
        self._set_commit(max(self.commit_index, min(append.commit_index, last)))
        reply = pb.AppendReply(success=True, next_index=last + 1, round=append.round)
        self._send(sender, append_reply=reply)

    def _reject(self, sender: str, append: pb.AppendEntries, own: Entry | None) -> None:
        if own is None:
            next_index = min(self.last_index + 1, append.prev_index)
        else:
            # Skip the whole conflicting term, but never what is committed.
            next_index = append.prev_index
            while next_index > self.commit_index + 1:
                before = self._entry(next_index - 1)
                if before is None or before[2] != own[2]:
                    break
                next_index -= 1
        reply = pb.AppendReply(reset=True, next_index=max(next_index, 2), round=append.round)
        self._send(sender, append_reply=reply)

    def _truncate_from(self, index: int) -> None:
        if index > self.last_index:
            return
        if index <= self.commit_index:
            raise RuntimeError(
                f"asked to truncate committed entries from {index}, commit is {self.commit_index}"
            )
        self._journal.deleteEntriesFrom(index - self._journal[0][1])
        for gone in [i for i in self._waiting if i >= index]:
            self._waiting.pop(gone)[1](None, Outcome.DISCARDED)
        if self._configurations[-1][0] >= index:
            self._configurations = [c for c in self._configurations if c[0] < index]
            self._adopt_configuration()

    def _on_snapshot_chunk(self, sender: str, chunk: pb.SnapshotChunk) -> None:
        if chunk.last_index <= self.commit_index:
            reply = pb.AppendReply(success=True, next_index=self.commit_index + 1, round=chunk.round)
            self._send(sender, append_reply=reply)
            return
        incoming = self._incoming
        wanted = (chunk.last_index, chunk.last_term, sender)
        if incoming is None or (incoming.last_index, incoming.last_term, incoming.sender) != wanted:
            incoming = self._incoming = _IncomingSnapshot(*wanted)
        if chunk.offset == len(incoming.data):
            incoming.data += chunk.data
            if chunk.last:
                self.pending_install = (sender, bytes(incoming.data))
                self._incoming = None
        reply_offset = len(incoming.data)
        self._send(
            sender,
            snapshot_reply=pb.SnapshotReply(
                last_index=chunk.last_index, next_offset=reply_offset, round=chunk.round
            ),
        )

    def install(self, sender: str, snapshot: Snapshot) -> None:
        """Takes up a verified snapshot that is already on disk as this manager's own."""
        if snapshot.last_index <= self.commit_index:
            return
        own = self._entry(snapshot.last_index)
        if own is not None and own[2] == snapshot.last_term:
            self._journal.deleteEntriesTo(snapshot.last_index - self._journal[0][1])
        else:
            self._journal.clear()
            self._journal.add(NOOP, snapshot.last_index, snapshot.last_term)
        self._machine.restore(snapshot.last_index, snapshot.state)
        self._SyncObj__raftLastApplied = snapshot.last_index
        self._set_commit(snapshot.last_index)
        self._snapshot_index = snapshot.last_index
        self._bytes_since_snapshot = 0
        for passed in [i for i in self._waiting if i <= snapshot.last_index]:
            self._waiting.pop(passed)[1](None, Outcome.UNKNOWN)
        newer = [c for c in self._configurations if c[0] > snapshot.last_index]
        members = {m.node_id: m.address for m in snapshot.members}
        self._configurations = [(snapshot.last_index, members), *(newer if own else [])]
        self._adopt_configuration()
        if sender == self.leader_id:
            reply = pb.AppendReply(success=True, next_index=snapshot.last_index + 1)
            self._send(sender, append_reply=reply)

    # ---- after the sync

    def advance(self) -> None:
        """Commits, applies, answers callers, steps down or campaigns. Only what is on disk is counted."""
        now = self._now()
        if self.state == LEADER:
            self._advance_commit()
            self._check_quorum(now)
        elif self.node_id in self.members and now >= self._SyncObj__raftElectionDeadline:
            self._campaign()
        self._SyncObj__applyLogEntries()

    def _advance_commit(self) -> None:
        match = self._SyncObj__raftMatchIndex
        reached = int(self._majority_value(lambda m: match.get(Node(m), 0), self.last_index))
        if reached <= self.commit_index:
            return
        entry = self._entry(reached)
        # Entries of earlier terms are committed only through one of this term (Raft, 5.4.2).
        if entry is not None and entry[2] == self.term:
            self._set_commit(reached)
            self._replicate_now = True

    def _check_quorum(self, now: float) -> None:
        heard = self._SyncObj__lastResponseTime
        oldest = self._majority_value(lambda m: heard.get(Node(m), float("-inf")), now)
        if now - oldest > self._settings.election_seconds_max:
            log.warning("stepping down: a majority of the managers does not answer", term=self.term)
            self._become_follower(self.term, None)
            self._postpone_election()

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802 - overrides PySyncObj's
        for _ in range(APPLY_ENTRIES_MAX):
            if self.applied_index >= self.commit_index:
                break
            index = self.applied_index + 1
            entry = self._entry(index)
            assert entry is not None, "committed entries behind the applied one are in the log"
            result = self._apply(entry)
            self._SyncObj__raftLastApplied = index
            waiting = self._waiting.pop(index, None)
            if waiting is not None:
                term, callback = waiting
                callback(result, None if term == entry[2] else Outcome.DISCARDED)
        return False

    def _apply(self, entry: Entry) -> object:
        command, index, _ = entry
        if command[:1] == MEMBERSHIP:
            if self.node_id not in self.members and any(self.node_id in c[1] for c in self._configurations):
                self.was_removed = True
            return None
        if command[:1] != DATA:
            return None
        try:
            return self._machine.apply(index, command[1:])
        except Exception as error:
            # The same on every manager; stopping all of them for ever would be worse.
            log.exception("the state machine failed on an entry", index=index)
            return error

    @property
    def has_backlog(self) -> bool:
        """Whether there is work for another round at once."""
        return self.applied_index < self.commit_index or self._replicate_now

    def _answer_all_unknown(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, callback in waiting.values():
            callback(None, Outcome.UNKNOWN)

    def deadline(self) -> float:
        """When, on the engine's clock, the next round is due if nothing happens."""
        if self.state == LEADER:
            return self._heartbeat_due
        if self.node_id not in self.members:
            return float("inf")
        return float(self._SyncObj__raftElectionDeadline)

    # ---- reading

    def begin_read(self) -> tuple[int, int]:
        """For a linearizable read: the round that must be confirmed, the index that must be applied."""
        self._replicate_now = True
        return self._round + 1, self.commit_index

    def confirmed_round(self) -> float:
        """The newest round that a majority has answered in this term."""
        return self._majority_value(lambda m: self._peer_rounds.get(m, 0), float("inf"))

    def answering(self) -> frozenset[str]:
        """Members heard within one election timeout, this leader included."""
        since = self._now() - self._settings.election_seconds_max
        heard = self._SyncObj__lastResponseTime
        return frozenset(
            m for m in self.members if m == self.node_id or heard.get(Node(m), float("-inf")) >= since
        )

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
        )
        self._bytes_since_snapshot = 0
        return header, self._machine.snapshot()

    def finish_snapshot(self, last_index: int) -> None:
        """Forgets log entries that the snapshot, now on disk, makes unneeded."""
        if last_index <= self._snapshot_index:
            return
        self._snapshot_index = last_index
        self._transfers.clear()
        covered = [c for c in self._configurations if c[0] <= last_index][-1]
        self._configurations = [covered, *(c for c in self._configurations if c[0] > last_index)]
        keep_from = max(self._journal[0][1], last_index - ENTRIES_FOR_SLOW_FOLLOWERS)
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
