"""The follower's side: taking up the leader's log, and snapshots of what it no longer has.

Only what was compared with this leader's log counts as its log: the commit index
never runs ahead of that, and only a real conflict is ever truncated.
"""

from __future__ import annotations

from swarmlet.api import pb
from swarmlet.raft.elections import Elections
from swarmlet.raft.engine import NOOP, IncomingSnapshot, Outcome
from swarmlet.raft.journal import Entry
from swarmlet.raft.snapshot import Snapshot


class Following(Elections):
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
        # Nobody waits for these: losing the leadership answered all who did, with "unknown".
        self._journal.deleteEntriesFrom(index - self._journal[0][1])
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
            incoming = self._incoming = IncomingSnapshot(*wanted)
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
        continues_here = own is not None and own[2] == snapshot.last_term
        if continues_here:
            self._journal.deleteEntriesTo(snapshot.last_index - self._journal[0][1])
        else:
            self._journal.clear()
            self._journal.add(NOOP, snapshot.last_index, snapshot.last_term)
        self._machine.restore(snapshot.last_index, snapshot.state)
        self._SyncObj__raftLastApplied = snapshot.last_index
        self._set_commit(snapshot.last_index)
        self._snapshot_index = snapshot.last_index
        self.generation = max(self.generation, snapshot.generation)
        self._bytes_since_snapshot = 0
        self._incoming = None
        for passed in [i for i in self._waiting if i <= snapshot.last_index]:
            self._waiting.pop(passed)[1](None, Outcome.UNKNOWN)
        newer = [c for c in self._configurations if c[0] > snapshot.last_index]
        members = {m.node_id: m.address for m in snapshot.members}
        self._configurations = [(snapshot.last_index, members), *(newer if continues_here else [])]
        self._adopt_configuration()
        if sender == self.leader_id:
            reply = pb.AppendReply(success=True, next_index=snapshot.last_index + 1)
            self._send(sender, append_reply=reply)
