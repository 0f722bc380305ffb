"""The leader's side: proposals, replication, snapshots for those far behind, reads, and who answers.

nextIndex never falls below matchIndex + 1, and matchIndex only when a follower says that
it lost entries: a late or repeated reply cannot make the leader send again, and a
follower drop, what is acknowledged.
"""

from __future__ import annotations

from collections import deque

import structlog
from pysyncobj.node import Node

from swarmlet.api import pb
from swarmlet.raft.elections import Elections
from swarmlet.raft.engine import LEADER, MEMBERSHIP, Flight, Outcome, ProposalCallback, SnapshotTransfer
from swarmlet.raft.journal import Entry

APPEND_BYTES_MAX = 1 << 20
APPEND_ENTRIES_MAX = 1024
IN_FLIGHT_BYTES_MAX = 16 << 20
ENTRY_OVERHEAD_BYTES = 32
LEARNER_LAG_ENTRIES_MAX = 200

log = structlog.get_logger(__name__)


class Leading(Elections):
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

    def _may_change_membership(self, command: bytes) -> bool:
        if not self.leads or self._configurations[-1][0] > self.commit_index:
            return False
        change = pb.MembershipChange.FromString(command[1:])
        is_removal = change.action == pb.MembershipChange.REMOVE
        return not (is_removal and change.member.node_id == self.node_id)

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

    # ---- replicating

    def replicate(self) -> None:
        """Sends what followers lack, the commit index when it moved, and heartbeats when they are due."""
        now = self._now()
        is_due = now >= self._heartbeat_due
        wanted, self._replicate_now = self._replicate_now, False
        if self.state != LEADER or not (is_due or wanted):
            return
        if is_due:
            self._heartbeat_due = now + self._settings.heartbeat_seconds
        self._round += 1
        for peer in self.peers:
            node = Node(peer)
            if node in self._SyncObj__connectedNodes and node in self._SyncObj__raftNextIndex:
                self._replicate_to(peer)

    def _replicate_to(self, peer: str) -> None:
        node = Node(peer)
        next_index = self._SyncObj__raftNextIndex[node]
        if next_index <= self._journal[0][1]:
            self._send_snapshot(peer)
            return
        self._transfers.pop(peer, None)
        flight = self._flights.setdefault(peer, Flight())
        must_speak = True
        while must_speak or (next_index <= self.last_index and flight.bytes < IN_FLIGHT_BYTES_MAX):
            entries = self._entries_for(next_index) if flight.bytes < IN_FLIGHT_BYTES_MAX else []
            previous = self._entry(next_index - 1)
            assert previous is not None
            append = pb.AppendEntries(
                commit_index=self.commit_index,
                prev_index=previous[1],
                prev_term=previous[2],
                entries=[pb.LogEntry(index=i, term=t, command=c) for c, i, t in entries],
                round=self._round,
            )
            self._send(peer, after_sync=False, append_entries=append, sender_address=self._own_address)
            if entries:
                next_index += len(entries)
                flight.sent(next_index - 1, sum(len(e[0]) + ENTRY_OVERHEAD_BYTES for e in entries))
            must_speak = False
        self._SyncObj__raftNextIndex[node] = next_index

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
                if sender in self._flights:
                    self._flights[sender].confirmed(match[node])
        elif reply.reset:
            if reply.next_index <= match[node]:
                # Replies come in order, so this is no late one.
                log.error("a manager lost entries that it had on disk", manager=sender, term=self.term)
                match[node] = reply.next_index - 1
            next_[node] = max(min(reply.next_index, next_[node]), match[node] + 1)
            self._flights.pop(sender, None)
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
            transfer = SnapshotTransfer(data, self._snapshot_index, self._snapshot_term())
            self._transfers[peer] = transfer
            self._send_chunk(peer, transfer, self._settings.snapshot_chunk_bytes)
        else:
            # Says that the leader is alive; the next part follows the reply to the last.
            self._send_chunk(peer, transfer, 0)

    def _send_chunk(self, peer: str, transfer: SnapshotTransfer, size: int) -> None:
        start = transfer.acknowledged
        chunk = pb.SnapshotChunk(
            last_index=transfer.last_index,
            last_term=transfer.last_term,
            offset=start,
            data=transfer.data[start : start + size],
            last=size > 0 and start + size >= len(transfer.data),
            round=self._round,
        )
        self._send(peer, after_sync=False, snapshot_chunk=chunk, sender_address=self._own_address)

    def _on_snapshot_reply(self, sender: str, reply: pb.SnapshotReply) -> None:
        if self.state != LEADER or Node(sender) not in self._SyncObj__raftMatchIndex:
            return
        self._heard_from(sender, reply.round)
        transfer = self._transfers.get(sender)
        if transfer is None or transfer.last_index != reply.last_index:
            return
        if reply.next_offset != transfer.acknowledged and reply.next_offset < len(transfer.data):
            transfer.acknowledged = reply.next_offset
            self._send_chunk(sender, transfer, self._settings.snapshot_chunk_bytes)

    def _snapshot_term(self) -> int:
        entry = self._entry(self._snapshot_index)
        assert entry is not None, "the log keeps the entry that the snapshot ends with"
        return entry[2]

    # ---- counting

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
