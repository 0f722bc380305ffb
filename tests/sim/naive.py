"""What the protocol would be without one of its corrections: so that tests are known to be able to fail.

Each is a context manager that replaces the corrected method by what PySyncObj, or a
plain reading of Raft, would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from pysyncobj.node import Node

from swarmlet.api import pb
from swarmlet.raft import snapshot as snapshot_module
from swarmlet.raft.core import Core
from swarmlet.raft.engine import LEADER, IncomingSnapshot, Outcome
from swarmlet.raft.journal import Entry
from swarmlet.raft.node import RaftNode
from swarmlet.raft.snapshot import Snapshot
from swarmlet.raft.waiters import Waiters
from tests.sim import scripted
from tests.sim.disks import DiskJournal


@contextmanager
def _instead(owner: object, **methods: Callable[..., object]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, method in methods.items():
            stack.enter_context(mock.patch.object(owner, name, method))
        yield


def late_acks_count_backwards() -> object:
    """An ack sets nextIndex to what it says, and a follower drops all behind what it is sent."""

    def on_append_reply(core: Core, sender: str, reply: pb.AppendReply) -> None:
        node = Node(sender)
        if core.state != LEADER or node not in core._SyncObj__raftMatchIndex:
            return
        core._heard_from(sender, reply.round)
        core._flights.pop(sender, None)
        core._SyncObj__raftNextIndex[node] = reply.next_index
        if reply.success:
            core._SyncObj__raftMatchIndex[node] = reply.next_index - 1
        core._replicate_now = True

    def on_append(core: Core, sender: str, append: pb.AppendEntries) -> None:
        entries: list[Entry] = [(e.command, e.index, e.term) for e in append.entries]
        own = core._entry(append.prev_index)
        if own is None or own[2] != append.prev_term:
            core._reject(sender, append, own)
            return
        if append.prev_index < core.last_index and entries:
            core._journal.deleteEntriesFrom(append.prev_index + 1 - core._journal[0][1])
        for entry in entries:
            core._append(entry)
        last = append.prev_index + len(entries)
        core._set_commit(max(core.commit_index, min(append.commit_index, last)))
        core._send(sender, append_reply=pb.AppendReply(success=True, next_index=last + 1, round=append.round))

    return _instead(Core, _on_append_reply=on_append_reply, _on_append=on_append)


def acks_without_a_term() -> object:
    receive = Core.receive

    def receive_any(core: Core, sender: str, message: pb.RaftMessage) -> None:
        if message.HasField("append_reply"):
            message.term = core.term
        receive(core, sender, message)

    return _instead(Core, receive=receive_any)


def commits_run_ahead() -> object:
    """The leader's commit index is taken for whatever is in the own log."""
    on_append = Core._on_append

    def commit_all(core: Core, sender: str, append: pb.AppendEntries) -> None:
        on_append(core, sender, append)
        core._set_commit(max(core.commit_index, min(append.commit_index, core.last_index)))

    return _instead(Core, _on_append=commit_all)


def rejections_without_a_hint() -> object:
    def reject(core: Core, sender: str, append: pb.AppendEntries, own: Entry | None) -> None:
        core._send(
            sender,
            append_reply=pb.AppendReply(reset=True, next_index=core.last_index + 1, round=append.round),
        )

    return _instead(Core, _reject=reject)


def many_membership_changes_at_once() -> object:
    return _instead(Core, _may_change_membership=lambda core, command: True)


def callers_forgotten() -> object:
    return _instead(Core, _answer_all_unknown=lambda core: core._waiting.clear())


def callers_told_that_it_was_not_done() -> object:
    def refuse_all(core: Core) -> None:
        waiting, core._waiting = core._waiting, {}
        for _, callback in waiting.values():
            callback(None, Outcome.NOT_LEADER)

    return _instead(Core, _answer_all_unknown=refuse_all)


def callers_known_by_index_alone() -> object:
    """Nobody is told of a lost leadership; who waits at an index gets what is applied there."""

    def apply(core: Core) -> bool:
        while core.applied_index < core.commit_index:
            index = core.applied_index + 1
            entry = core._entry(index)
            assert entry is not None
            result = core._apply(entry)
            core._SyncObj__raftLastApplied = index
            if index in core._waiting:
                core._waiting.pop(index)[1](result, None)
        return False

    return _instead(Core, _answer_all_unknown=lambda core: None, _SyncObj__applyLogEntries=apply)


def exceptions_of_the_state_machine_escape() -> object:
    def apply(core: Core, entry: Entry) -> object:
        return core._machine.apply(entry[1], entry[0][1:]) if entry[0][:1] == b"\x00" else None

    return _instead(Core, _apply=apply)


@contextmanager
def snapshots_taken_as_they_come() -> Iterator[None]:
    """Parts are put together in whatever order they come, and no checksum is looked at."""

    def on_chunk(core: Core, sender: str, chunk: pb.SnapshotChunk) -> None:
        if core._incoming is None:
            core._incoming = IncomingSnapshot(chunk.last_index, chunk.last_term, sender)
        incoming = core._incoming
        incoming.data += chunk.data
        if chunk.last:
            core.pending_install = (sender, bytes(incoming.data))
            core._incoming = None
        offset = chunk.offset + len(chunk.data)
        core._send(
            sender,
            snapshot_reply=pb.SnapshotReply(
                last_index=chunk.last_index, next_offset=offset, round=chunk.round
            ),
        )

    def decode(data: bytes, source: str) -> Snapshot:
        start = len(snapshot_module.MAGIC) + 4
        size = int.from_bytes(data[start - 4 : start], "little")
        header = pb.SnapshotHeader.FromString(data[start : start + size])
        state = data[start + size : -32]
        return Snapshot(header.last_index, header.last_term, list(header.members), state)

    with _instead(Core, _on_snapshot_chunk=on_chunk), mock.patch.object(scripted, "decode", decode):
        yield


@contextmanager
def votes_counted_by_message() -> Iterator[None]:
    def on_vote_reply(core: Core, sender: str, term: int, reply: pb.VoteReply) -> None:
        if not reply.granted:
            return
        core._votes.add(f"vote {len(core._votes)}")
        if reply.pre_vote and core._pre_vote_term == term and len(core._votes) >= core._quorum():
            core._start_election()
        elif core.state == 1 and term == core.term and len(core._votes) >= core._quorum():
            core._lead()

    with _instead(Core, _on_vote_reply=on_vote_reply):
        yield


def elections_without_a_question_first() -> object:
    return _instead(Core, _campaign=lambda core: core._start_election(), _hears_a_leader=lambda core: False)


def leaders_that_never_step_down() -> object:
    return _instead(Core, _check_quorum=lambda core, now: None)


def entries_of_former_terms_committed_by_counting() -> object:
    def advance_commit(core: Core) -> None:
        match = core._SyncObj__raftMatchIndex
        reached = int(core._majority_value(lambda m: match.get(Node(m), 0), core.last_index))
        if reached > core.commit_index:
            core._set_commit(reached)
            core._replicate_now = True

    return _instead(Core, _advance_commit=advance_commit)


def votes_not_on_disk() -> object:
    def sync(journal: DiskJournal) -> None:
        journal._disk.entries = list(journal._entries)
        journal._disk.commit = journal._commit_recorded
        journal._pending.clear()
        journal._rewrite = journal._term_pending = False

    return _instead(DiskJournal, sync=sync)


def promises_sent_before_the_sync() -> object:
    def queue(node: RaftNode, peer: str, message: pb.RaftMessage, after_sync: bool) -> None:
        node._transport.send(peer, message)

    return _instead(RaftNode, _queue_message=queue)


def reads_on_trust() -> object:
    async def read(waiters: Waiters) -> None:
        return None

    return _instead(Waiters, read=read)
