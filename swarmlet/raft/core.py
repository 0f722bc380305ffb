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
  - whoever asks for an answer says where it is, so that a log which is too old to
    know the sender does not keep its owner from ever answering;
  - a caller is always answered: done, not done, or unknown;
  - an exception of the state machine is that entry's result;
  - a snapshot is installed only after its checksum was verified and it is on disk;
  - votes are a set of voters, and only members' votes count;
  - pre-vote and leader stickiness: a node that returns, or hears nobody, does not
    depose a leader that a majority hears;
  - a leader that a majority does not answer steps down;
  - a group made anew from one manager takes nothing from what is left of the old one.
"""

from __future__ import annotations

import structlog

from swarmlet.api import pb
from swarmlet.raft.engine import DATA, LEADER, Outcome
from swarmlet.raft.follower import Following
from swarmlet.raft.journal import Entry
from swarmlet.raft.leader import Leading

APPLY_ENTRIES_MAX = 256
"""Entries applied in one round, so that a long backlog does not hold up heartbeats."""

log = structlog.get_logger(__name__)


class Core(Leading, Following):
    """One manager's protocol. Everything durable is in the journal and the snapshot given."""

    def receive(self, sender: str, message: pb.RaftMessage) -> None:
        kind = message.WhichOneof("message")
        if kind != "removed" and self._is_of_a_former_group(sender, message.generation):
            if self.leads:
                self._note_contact(sender, message.sender_address)
                self._send(sender, removed=pb.Removed())
            return
        if kind == "request_vote":
            self._on_request_vote(sender, message.term, message.sender_address, message.request_vote)
        elif kind == "vote_reply":
            self._on_vote_reply(sender, message.term, message.vote_reply)
        elif kind == "removed":
            self._on_removed(message.term, message.generation)
        elif message.term < self.term:
            if kind in ("append_entries", "snapshot_chunk"):
                # Tells a leader of the past that its time is over.
                self._send(sender, append_reply=pb.AppendReply(next_index=self.last_index + 1))
        elif kind == "append_entries":
            self._follow(sender, message.term, message.sender_address)
            self._on_append(sender, message.append_entries)
        elif kind == "snapshot_chunk":
            self._follow(sender, message.term, message.sender_address)
            self._on_snapshot_chunk(sender, message.snapshot_chunk)
        elif message.term > self.term:
            self._become_follower(message.term, None)
        elif kind == "append_reply":
            self._on_append_reply(sender, message.append_reply)
        elif kind == "snapshot_reply":
            self._on_snapshot_reply(sender, message.snapshot_reply)
        elif kind == "timeout_now" and sender == self.leader_id:
            self._start_election(transfer=True)

    def _is_of_a_former_group(self, sender: str, generation: int) -> bool:
        # A learner, and a member that is new here, read about the generation in the log later.
        is_known = sender in self.members or sender in self._learners
        return generation < self.generation and not is_known

    def advance(self) -> None:
        """Commits, applies, answers callers, steps down or campaigns. Only what is on disk is counted."""
        now = self._now()
        if self.state == LEADER:
            self._advance_commit()
            self._check_quorum(now)
        elif self.node_id in self.members and now >= self._SyncObj__raftElectionDeadline:
            self._campaign()
        self._SyncObj__applyLogEntries()

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

    def deadline(self) -> float:
        """When, on the engine's clock, the next round is due if nothing happens."""
        if self.state == LEADER:
            return self._heartbeat_due
        if self.node_id not in self.members:
            return float("inf")
        return float(self._SyncObj__raftElectionDeadline)
