"""A group made anew from one manager's files: nothing lost, nothing half done, whenever the power goes."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmlet.api import pb
from swarmlet.raft.core import Core
from swarmlet.raft.engine import DATA, LEADER, MEMBERSHIP, NOOP, RaftSettings
from swarmlet.raft.journal import Journal, JournalCorrupt
from swarmlet.raft.node import RaftFiles
from swarmlet.raft.recovery import Replayed, found_group, replay, reset_members
from swarmlet.raft.snapshot import Snapshot, SnapshotFile

SURVIVOR = pb.RaftMember(node_id="a", address="a:2")


class ListMachine:
    """What was applied, in order; "boom" fails."""

    def __init__(self) -> None:
        self.operations: list[bytes] = []

    def apply(self, index: int, data: bytes) -> None:
        if data == b"boom":
            raise KeyError("boom")
        self.operations.append(data)

    def snapshot(self) -> Callable[[], bytes]:
        copy = list(self.operations)
        return lambda: b"\n".join(copy)

    def restore(self, index: int, data: bytes) -> None:
        self.operations = data.split(b"\n")


def a_journal(path: Path, *, writes: int = 3, commit: int = 4) -> Path:
    """Of a group a, b, c in term 5; what is behind `commit` was never heard to be committed."""
    journal = Journal(path)
    journal.add(NOOP, 1, 0)
    for number, name in enumerate("abc"):
        change = pb.MembershipChange(member=pb.RaftMember(node_id=name, address=f"{name}:1"))
        journal.add(MEMBERSHIP + change.SerializeToString(), number + 2, 1)
    journal.setCurrentTerm(5, "b")
    journal.sync()
    for number in range(writes):
        journal.add(DATA + b"write%d" % number, number + 5, 5)
        journal.sync()
    journal.setRaftCommitIndex(commit)
    journal.onOneSecondTimer()
    journal.sync()
    journal.close()
    return path


def read(path: Path, snapshot: Snapshot | None = None) -> tuple[Replayed, list[bytes]]:
    journal, machine = Journal(path), ListMachine()
    try:
        return replay(journal, snapshot, machine), machine.operations
    finally:
        journal.close()


def reset(path: Path, snapshot: Snapshot | None = None) -> None:
    journal = Journal(path)
    try:
        replayed = replay(journal, snapshot, ListMachine())
        reset_members(journal, replayed, SURVIVOR, [b"others are workers"])
    finally:
        journal.close()


def core_of(files: RaftFiles, machine: ListMachine) -> Core:
    if files.snapshot is not None:
        machine.restore(files.snapshot.last_index, files.snapshot.state)
    return Core(
        node_id="a",
        journal=files.journal,
        snapshot=files.snapshot,
        machine=machine,
        settings=RaftSettings(),
        rng=random.Random(1),
        send=lambda *_: pytest.fail("there is nobody to speak with"),
        read_snapshot=files.snapshot_file.read,
    )


def lead_alone(core: Core) -> None:
    for _ in range(4):
        core._SyncObj__raftElectionDeadline = core._now()
        core.replicate()
        core.advance()


def test_everything_in_the_journal_is_kept_also_what_was_not_known_to_be_committed(tmp_path: Path) -> None:
    path = a_journal(tmp_path / "journal", writes=4, commit=5)

    reset(path)

    replayed, operations = read(path)
    assert operations == [b"write0", b"write1", b"write2", b"write3", b"others are workers"]
    assert replayed.members == {"a": "a:2"}
    assert replayed.generation == 1
    journal = Journal(path)
    assert journal.getRaftCommitIndex() == replayed.last_index == 10
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (6, None)
    journal.close()


def test_the_survivor_leads_by_itself_and_applies_everything(tmp_path: Path) -> None:
    a_journal(tmp_path / "journal")
    reset(tmp_path / "journal")
    files, machine = RaftFiles(tmp_path), ListMachine()

    core = core_of(files, machine)
    lead_alone(core)

    assert core.state == LEADER
    assert dict(core.members) == {"a": "a:2"}
    assert machine.operations[-1] == b"others are workers"
    files.journal.close()


def test_a_crash_at_any_byte_leaves_the_old_group_or_the_new_one(tmp_path: Path) -> None:
    path = a_journal(tmp_path / "journal")
    old = path.read_bytes()
    before = read(path)
    reset(path)
    new = path.read_bytes()
    after = read(path)
    assert new[: len(old)] == old

    for end in range(len(old), len(new) + 1):
        path.write_bytes(new[:end])
        assert read(path) == (after if end == len(new) else before)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_leaves_the_old_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    path = a_journal(tmp_path / "journal")
    before = read(path)
    journal = Journal(path)
    replayed = replay(journal, None, ListMachine())

    def fail(_: int) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError):
            reset_members(journal, replayed, SURVIVOR, [])
    journal.close()

    assert read(path) == before


def test_the_journal_is_read_from_where_the_snapshot_ends(tmp_path: Path) -> None:
    path = a_journal(tmp_path / "journal")
    snapshot = Snapshot(6, 5, [pb.RaftMember(node_id="a", address="a:1")], b"folded", generation=3)

    replayed, operations = read(path, snapshot)

    assert operations == [b"folded", b"write2"]
    assert (replayed.last_index, replayed.generation) == (7, 3)


def test_a_journal_that_a_snapshot_has_replaced_goes_on_behind_the_snapshot(tmp_path: Path) -> None:
    path = a_journal(tmp_path / "journal")
    snapshot = Snapshot(20, 7, [pb.RaftMember(node_id="b", address="b:1")], b"installed")

    reset(path, snapshot)

    SnapshotFile(tmp_path / "snapshot").write(snapshot.encode())
    files, machine = RaftFiles(tmp_path), ListMachine()
    lead_alone(core_of(files, machine))
    assert machine.operations == [b"installed", b"others are workers"]
    files.journal.close()


def test_a_gap_between_snapshot_and_journal_is_refused(tmp_path: Path) -> None:
    path = a_journal(tmp_path / "journal")
    journal = Journal(path)
    journal.deleteEntriesTo(4)
    journal.sync()
    journal.close()

    with pytest.raises(JournalCorrupt, match="begins at entry 5"):
        read(path)
    with pytest.raises(JournalCorrupt, match="begins at entry 5"):
        read(path, Snapshot(3, 1, [], b""))


def test_an_entry_on_which_the_state_machine_fails_is_skipped_and_told(tmp_path: Path) -> None:
    path = a_journal(tmp_path / "journal")
    journal = Journal(path)
    journal.add(DATA + b"boom", 8, 5)
    journal.add(DATA + b"after", 9, 5)
    journal.sync()
    journal.close()

    replayed, operations = read(path)

    assert operations[-1] == b"after"
    assert len(replayed.failures) == 1 and "entry 8" in replayed.failures[0]


def test_a_second_disaster_makes_another_generation(tmp_path: Path) -> None:
    path = a_journal(tmp_path / "journal")

    reset(path)
    reset(path)

    assert read(path)[0].generation == 2


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.integers(0, 20), commit=st.integers(1, 24))
def test_whatever_was_written_is_there_afterwards(
    tmp_path_factory: pytest.TempPathFactory, writes: int, commit: int
) -> None:
    path = a_journal(tmp_path_factory.mktemp("journal") / "journal", writes=writes, commit=commit)

    reset(path)

    assert read(path)[1] == [*(b"write%d" % n for n in range(writes)), b"others are workers"]


def test_a_group_founded_from_a_snapshot_goes_on_behind_it(tmp_path: Path) -> None:
    found_group(tmp_path / "raft", Snapshot(40, 9, [SURVIVOR], b"saved", generation=2))
    files, machine = RaftFiles(tmp_path / "raft"), ListMachine()

    core = core_of(files, machine)
    lead_alone(core)

    assert core.state == LEADER
    assert machine.operations == [b"saved"]
    assert core.last_index == 41 and core.term == 10 and core.generation == 2
    files.journal.close()
