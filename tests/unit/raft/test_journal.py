"""The log on disk: what was synced is there again, what is damaged is refused, what was cut short is cut."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.raft.journal import FILE_MAGIC, Entry, Journal, JournalCorrupt


@dataclass
class Model:
    """What a journal holds, without a disk."""

    entries: list[Entry] = field(default_factory=list)
    term: int = 0
    vote: str | None = None
    commit: int = 1


def contents(journal: Journal) -> Model:
    term, vote = journal.getCurrentTerm(), journal.getVotedForNodeId()
    return Model(journal[:], term, vote, journal.getRaftCommitIndex())


def reopened(path: Path) -> Model:
    journal = Journal(path)
    try:
        return contents(journal)
    finally:
        journal.close()


def write_frames(path: Path) -> list[int]:
    """A journal of several frames, one sync each; returns the size of the file after each."""
    journal = Journal(path)
    sizes = [path.stat().st_size]
    for number in range(1, 5):
        journal.setCurrentTerm(number, f"node{number}")
        journal.add(b"entry %d" % number * number, number, number)
        journal.sync()
        sizes.append(path.stat().st_size)
    journal.close()
    return sizes


def name_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())


# ---- what was synced is there


def test_an_empty_journal_is_made_and_opened_again(tmp_path: Path) -> None:
    Journal(tmp_path / "journal").close()

    assert reopened(tmp_path / "journal") == Model()


def test_what_was_synced_is_there_after_reopening(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.add(b"", 1, 0)
    journal.add(b"two", 2, 3)
    journal.setCurrentTerm(3, "me")
    journal.setRaftCommitIndex(2)
    journal.onOneSecondTimer()
    journal.sync()
    journal.close()

    assert reopened(tmp_path / "journal") == Model([(b"", 1, 0), (b"two", 2, 3)], 3, "me", 2)


def test_what_was_not_synced_is_not_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.add(b"one", 1, 1)
    journal.sync()
    journal.add(b"two", 2, 1)
    journal.setCurrentTerm(5, "other")
    assert journal.dirty
    assert journal.term_pending
    journal.close()

    assert reopened(tmp_path / "journal") == Model([(b"one", 1, 1)])


def test_a_vote_for_nobody_differs_from_a_vote(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.setCurrentTerm(2, "a")
    journal.sync()
    journal.setCurrentTerm(3, None)
    journal.sync()
    journal.close()

    assert reopened(tmp_path / "journal") == Model(term=3)


def test_entries_must_follow_each_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.add(b"", 5, 1)

    with pytest.raises(ValueError, match="does not follow"):
        journal.add(b"", 7, 1)
    journal.close()


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.binary(max_size=40), st.integers(0, 3)),
        st.tuples(st.just("from"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("to"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("term"), st.sampled_from([None, "a", "node-ü"]), st.integers(0, 1 << 40)),
        st.tuples(st.just("commit"), st.just(0), st.integers(1, 1 << 40)),
        st.tuples(st.just("clear"), st.just(0), st.integers(1, 50)),
        st.tuples(st.just("sync"), st.just(0), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(actions)
def test_a_journal_holds_what_a_model_of_it_holds(steps: list[tuple[str, object, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal"
        journal, model = Journal(path), Model()
        synced = Model()
        next_index = 1
        for kind, what, number in steps:
            if kind == "add":
                assert isinstance(what, bytes)
                journal.add(what, next_index, number)
                model.entries.append((what, next_index, number))
                next_index += 1
            elif kind == "from":
                assert isinstance(what, int)
                journal.deleteEntriesFrom(what)
                del model.entries[what:]
                next_index = model.entries[-1][1] + 1 if model.entries else next_index
            elif kind == "to":
                assert isinstance(what, int)
                journal.deleteEntriesTo(what)
                del model.entries[:what]
            elif kind == "term":
                assert what is None or isinstance(what, str)
                journal.setCurrentTerm(number, what)
                model.term, model.vote = number, what
            elif kind == "commit":
                journal.setRaftCommitIndex(number)
                journal.onOneSecondTimer()
                model.commit = number
            elif kind == "clear":
                journal.clear()
                model.entries.clear()
                next_index = number
            if kind == "sync":
                journal.sync()
                assert not journal.dirty
                synced = Model(list(model.entries), model.term, model.vote, model.commit)
            elif kind == "reopen":
                journal.close()
                journal, model = Journal(path), synced
                synced = Model(list(model.entries), model.term, model.vote, model.commit)
                next_index = model.entries[-1][1] + 1 if model.entries else 1
            assert contents(journal) == model
        journal.sync()
        journal.close()
        assert reopened(path) == model


def test_a_killed_process_leaves_nothing_that_only_the_page_cache_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its write and its sync, it finds the frame again: then that must be on disk too."""
    write_frames(tmp_path / "journal")
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(name_of(fd)))
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(name_of(fd)))

    Journal(tmp_path / "journal").close()

    assert str(tmp_path / "journal") in synced


# ---- what is damaged


def test_a_crash_at_any_byte_of_the_last_frame_leaves_the_frames_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write_frames(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: sizes[-2]])
    before = reopened(path)

    for size in range(sizes[-2], sizes[-1]):
        path.write_bytes(whole[:size])

        assert reopened(path) == before
        assert path.read_bytes() == whole[: sizes[-2]], "the torn tail is removed"


def test_a_crash_that_wrote_the_size_but_not_the_content_is_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write_frames(path)
    whole = path.read_bytes()

    path.write_bytes(whole[: sizes[-2]] + bytes(sizes[-1] - sizes[-2]))

    assert len(reopened(path).entries) == 3


def test_a_journal_goes_on_after_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write_frames(path)
    path.write_bytes(path.read_bytes()[: sizes[-1] - 1])

    journal = Journal(path)
    journal.add(b"instead", 4, 9)
    journal.sync()
    journal.close()

    assert reopened(path).entries[3] == (b"instead", 4, 9)


def test_a_flipped_bit_anywhere_but_in_the_last_frame_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write_frames(path)
    whole = path.read_bytes()

    for position in range(sizes[-2]):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)

        with pytest.raises(JournalCorrupt, match=str(path)):
            Journal(path)
        assert path.read_bytes() == damaged, "what is refused is left as it is"


def test_a_flipped_bit_in_the_last_frame_is_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write_frames(path)
    whole = path.read_bytes()

    for position in range(sizes[-2], sizes[-1]):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)

        assert len(reopened(path).entries) == 3


def test_a_flipped_bit_in_a_compacted_file_is_refused_although_nothing_was_written_since(
    tmp_path: Path,
) -> None:
    """It came into being by a rename, whole: nothing in it can be a write that was cut short."""
    path = tmp_path / "journal"
    journal = Journal(path)
    for index in range(1, 6):
        journal.add(b"entry", index, 1)
    journal.setCurrentTerm(1, "a")
    journal.sync()
    journal.deleteEntriesTo(2)
    journal.sync()
    journal.close()
    whole = path.read_bytes()
    frame_bytes = 24

    for position in range(len(whole) - frame_bytes):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)

        with pytest.raises(JournalCorrupt):
            Journal(path)


def test_a_repeated_frame_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write_frames(path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[sizes[-2] :])

    with pytest.raises(JournalCorrupt):
        Journal(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_refused_or_cut_and_never_anything_else(data: bytes, has_magic: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal"
        path.write_bytes((FILE_MAGIC if has_magic else b"") + data)
        try:
            journal = Journal(path)
        except JournalCorrupt:
            return
        assert has_magic or data.startswith(FILE_MAGIC)
        journal.close()


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False))
def test_random_damage_to_a_good_file_never_invents_anything(rng: random.Random) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal"
        write_frames(path)
        good = reopened(path)
        data = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 5)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 30)] = rng.randbytes(rng.randint(0, 30))
        path.write_bytes(data)
        try:
            found = reopened(path)
        except JournalCorrupt:
            return
        assert found.entries == good.entries[: len(found.entries)]


def test_a_record_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal._record(99, b"from the future")
    journal.sync()
    journal.close()

    with pytest.raises(JournalCorrupt, match="unknown kind"):
        Journal(path)


# ---- when writing fails


@pytest.mark.parametrize("call", ["write", "fdatasync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_is_told_and_loses_nothing_that_was_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.add(b"one", 1, 1)
    journal.sync()
    journal.add(b"two", 2, 1)

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=os.strerror(code)):
            journal.sync()
    journal.close()

    assert reopened(path).entries == [(b"one", 1, 1)], "what is not on disk is not found again"


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.add(b"x" * 1000, 1, 1)
    whole_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole_write(fd, data[:7]))

    journal.sync()
    journal.close()

    assert reopened(path).entries == [(b"x" * 1000, 1, 1)]


def test_a_compaction_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    for index in range(1, 6):
        journal.add(b"x", index, 1)
    journal.sync()
    before = path.read_bytes()
    journal.deleteEntriesTo(3)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="broken disk"):
            journal.sync()
    journal.close()

    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["journal"]


def test_compaction_makes_the_file_small(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    for index in range(1, 101):
        journal.add(b"x" * 1000, index, 1)
        journal.sync()

    journal.deleteEntriesTo(90)
    journal.sync()
    journal.close()

    assert path.stat().st_size < 20_000
    assert [e[1] for e in reopened(path).entries] == list(range(91, 101))
