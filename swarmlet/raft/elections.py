"""Who leads: elections with a question first (pre-vote), and leaders that are left alone while heard.

A follower that hears nobody first asks whether it would win; only then does it raise
the term. Nobody votes while it hears a leader, unless that leader asked for it.
"""

from __future__ import annotations

from pysyncobj.node import Node

from swarmlet.api import pb
from swarmlet.raft.engine import CANDIDATE, FOLLOWER, LEADER, EngineState


class Elections(EngineState):
    was_superseded = False
    """Whether it was a group made anew from another manager that voted this one out."""

    def _follow(self, leader: str, term: int, address: str) -> None:
        # A leader's own log is never behind in where it is itself.
        self._note_contact(leader, address)
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
        if self._votes_suffice():
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
        if self._votes_suffice():
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
        # Contacts have no vote here, but may lead and know better than this log who is a member.
        for peer in {**self.members, **self._contacts} if pre_vote else self.members:
            if peer != self.node_id:
                message = pb.RaftMessage(term=term, request_vote=request, sender_address=self._own_address)
                self._send_message(peer, message, True)

    def _on_request_vote(self, sender: str, term: int, address: str, request: pb.RequestVote) -> None:
        if sender not in self.members:
            self._note_contact(sender, address)
            if self._has_voted_out(sender):
                self._send(sender, removed=pb.Removed())
                return
        mine = (self._journal[-1][2], self.last_index)
        is_current = (request.last_log_term, request.last_log_index) >= mine
        if request.pre_vote:
            granted = term > self.term and is_current and not self._hears_a_leader()
            reply = pb.VoteReply(pre_vote=True, granted=granted, leader=self._known_leader())
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

    def _known_leader(self) -> pb.RaftMember | None:
        leader = self.leader_id
        if leader is None or leader not in self.members:
            return None
        return pb.RaftMember(node_id=leader, address=self.members[leader])

    def _has_voted_out(self, sender: str) -> bool:
        """Whether this leader knows for certain that `sender` is no member and is not becoming one."""
        return (
            self.leads and sender not in self._learners and self._configurations[-1][0] <= self.commit_index
        )

    def _on_removed(self, term: int, generation: int) -> None:
        # One who was let in again since has heard of a later term, or of the newer group.
        self.was_superseded = generation > self.generation
        if self.was_superseded or (term >= self.term and generation == self.generation):
            self.was_removed = True

    def _on_vote_reply(self, sender: str, term: int, reply: pb.VoteReply) -> None:
        if sender not in self.members:
            return
        if reply.HasField("leader") and reply.leader.node_id not in self.members:
            self._note_contact(reply.leader.node_id, reply.leader.address)
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
        self._flights.clear()
        self._SyncObj__onBecomeLeader()

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802 - overrides PySyncObj's
        self._replicate_now = True

    def transfer_leadership(self, target: str) -> bool:
        """Asks `target` to take over; False when it is not ready for it."""
        match = self._SyncObj__raftMatchIndex.get(Node(target), 0)
        if self.state != LEADER or target not in self.members or match != self.last_index:
            return False
        self._send(target, timeout_now=pb.TimeoutNow(), sender_address=self._own_address)
        return True
