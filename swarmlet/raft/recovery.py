"""Disaster recovery on a manager's files, while nobody takes part with them.

Called by the daemon between two lives of its manager (a group made anew from one
manager, a restored backup) and by `system check`. Nothing here talks to other
managers. What is written is durable on return; a crash leaves the old state or the
new one, never something in between.

Every entry of the journal counts as committed, also those behind the last commit
index that this manager heard of. A write is acknowledged as soon as a majority has
it on disk, and followers learn of that only with the leader's next message: an
acknowledged write may sit uncommitted in the survivor's journal, and dropping it
would lose it. The price is that a write may take effect whose caller was told
"unknown", which is what that answer means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swarmlet.api import pb
from swarmlet.raft.agreement import StateMachine
from swarmlet.raft.engine import DATA, MEMBERSHIP, NOOP
from swarmlet.raft.files import sync_directory
from swarmlet.raft.journal import Journal, JournalCorrupt
from swarmlet.raft.node import RaftFiles
from swarmlet.raft.snapshot import Snapshot, SnapshotFile


@dataclass
class Replayed:
    """What a manager's files say, all of it."""

    last_index: int
    last_term: int
    generation: int
    members: dict[str, str]
    """Node ids and addresses, as the last entry about them says."""
    failures: list[str] = field(default_factory=list)
    """Entries on which the state machine failed."""


def replay(journal: Journal, snapshot: Snapshot | None, machine: StateMachine) -> Replayed:
    """Brings `machine`, which must be empty, to the end of the journal.

    Raises JournalCorrupt when the log does not continue the snapshot, and what
    `machine.restore` raises.
    """
    done = Replayed(last_index=0, last_term=0, generation=0, members={})
    if snapshot is not None:
        machine.restore(snapshot.last_index, snapshot.state)
        done = Replayed(
            last_index=snapshot.last_index,
            last_term=snapshot.last_term,
            generation=snapshot.generation,
            members={m.node_id: m.address for m in snapshot.members},
        )
    for command, index, term in _following(journal, snapshot):
        done.last_index, done.last_term = index, term
        if command[:1] == MEMBERSHIP:
            _note_members(done, pb.MembershipChange.FromString(command[1:]))
        elif command[:1] == DATA:
            try:
                machine.apply(index, command[1:])
            except Exception as error:
                # As in a running manager: an entry that fails is skipped, on every manager.
                done.failures.append(f"entry {index} cannot be applied: {error!r}")
    return done


def _following(journal: Journal, snapshot: Snapshot | None) -> list[tuple[bytes, int, int]]:
    """The entries behind the snapshot. Raises JournalCorrupt when some are missing."""
    entries = journal[:]
    covered, covered_term = (snapshot.last_index, snapshot.last_term) if snapshot is not None else (0, 0)
    if not entries:
        return []
    if entries[0][1] > covered + 1 or (entries[0][1] > covered and snapshot is not None):
        raise JournalCorrupt(
            f"the journal begins at entry {entries[0][1]}, the snapshot before it ends at {covered}"
        )
    position = covered - entries[0][1]
    if snapshot is not None and (position >= len(entries) or entries[position][2] != covered_term):
        # A crash came between writing the snapshot and trimming the log, which it replaces.
        return []
    return entries[position + 1 :]


def _note_members(done: Replayed, change: pb.MembershipChange) -> None:
    if change.action == pb.MembershipChange.RESET:
        done.members = {change.member.node_id: change.member.address}
        done.generation = max(done.generation, change.generation)
    elif change.action == pb.MembershipChange.REMOVE:
        done.members.pop(change.member.node_id, None)
    else:
        done.members[change.member.node_id] = change.member.address


def reset_members(
    journal: Journal, replayed: Replayed, member: pb.RaftMember, commands: Sequence[bytes]
) -> None:
    """Makes `member` the only one, and commits `commands` (the state machine's) with that.

    The log goes on: what is added is one frame of the journal, which is there as a
    whole or not at all, whatever moment a crash chooses. `journal` must be the one that
    was replayed, and free of what it did not replay. Raises OSError; the journal must
    then not be used any more, and the file is as it was.
    """
    if len(journal) == 0 or journal[-1][1] != replayed.last_index:
        journal.clear()
        journal.add(NOOP, replayed.last_index, replayed.last_term)
    term = max(journal.getCurrentTerm(), replayed.last_term) + 1
    reset = pb.MembershipChange(
        action=pb.MembershipChange.RESET, member=member, generation=replayed.generation + 1
    )
    index = replayed.last_index
    journal.setCurrentTerm(term, None)
    for command in (MEMBERSHIP + reset.SerializeToString(), *(DATA + data for data in commands)):
        index += 1
        journal.add(command, index, term)
    journal.setRaftCommitIndex(index)
    journal.onOneSecondTimer()
    journal.sync()


def found_group(directory: Path, snapshot: Snapshot) -> None:
    """Makes a manager's files from a snapshot, for a new group of the snapshot's members.

    `directory` must not hold files of another group: RaftFiles of it are empty. Raises
    OSError, JournalCorrupt or SnapshotCorrupt. After a crash the directory may be
    incomplete: whoever calls this remembers the group only after it has returned.
    """
    files = RaftFiles(directory)
    try:
        assert files.is_empty, f"{directory} holds the state of a manager"
        files.journal.setCurrentTerm(snapshot.last_term, None)
        files.journal.add(NOOP, snapshot.last_index, snapshot.last_term)
        files.journal.setRaftCommitIndex(snapshot.last_index)
        files.journal.onOneSecondTimer()
        files.journal.sync()
    finally:
        files.journal.close()
    SnapshotFile(directory / "snapshot").write(snapshot.encode())
    sync_directory(directory)
