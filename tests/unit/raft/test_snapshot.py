"""Snapshot files: whole or not at all, and damage is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.api import pb
from swarmlet.raft.files import replace_file
from swarmlet.raft.snapshot import Snapshot, SnapshotCorrupt, SnapshotFile, decode

MEMBERS = [pb.RaftMember(node_id=n, address=f"{n}:2377") for n in "abc"]


def a_snapshot(state: bytes = b"some state") -> Snapshot:
    return Snapshot(42, 7, MEMBERS, state)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60), st.binary(max_size=2000))
def test_what_was_encoded_is_decoded(last_index: int, last_term: int, state: bytes) -> None:
    snapshot = Snapshot(last_index, last_term, MEMBERS, state)

    assert decode(snapshot.encode(), "here") == snapshot


def test_a_truncated_snapshot_is_refused_wherever_it_ends() -> None:
    encoded = a_snapshot().encode()

    for size in range(len(encoded)):
        with pytest.raises(SnapshotCorrupt, match="from there"):
            decode(encoded[:size], "from there")


def test_a_flipped_bit_is_refused_wherever_it_is() -> None:
    encoded = a_snapshot().encode()

    for position in range(len(encoded)):
        damaged = bytearray(encoded)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(SnapshotCorrupt):
            decode(bytes(damaged), "from there")


def test_bytes_behind_the_end_are_refused() -> None:
    with pytest.raises(SnapshotCorrupt):
        decode(a_snapshot().encode() + b"\x00", "from there")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SnapshotCorrupt):
        decode(data, "somewhere")


def test_a_file_that_does_not_exist_is_no_snapshot(tmp_path: Path) -> None:
    assert SnapshotFile(tmp_path / "snapshot").load() is None


def test_the_newest_snapshot_written_is_the_one_loaded(tmp_path: Path) -> None:
    file = SnapshotFile(tmp_path / "snapshot")
    file.write(a_snapshot(b"old").encode())
    file.write(a_snapshot(b"new").encode())

    loaded = SnapshotFile(tmp_path / "snapshot").load()

    assert loaded is not None
    assert loaded.state == b"new"
    assert file.read() == a_snapshot(b"new").encode()


def test_only_its_owner_reads_a_snapshot(tmp_path: Path) -> None:
    file = SnapshotFile(tmp_path / "snapshot")

    file.write(a_snapshot().encode())

    assert (tmp_path / "snapshot").stat().st_mode & 0o777 == 0o600


# ---- replacing a file


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_file_that_cannot_be_replaced_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "file"
    replace_file(path, [b"old"])

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=os.strerror(code)):
            replace_file(path, [b"new"])

    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_is_on_disk_before_its_name_and_its_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_replace = Path.replace

    def note_sync(fd: int) -> None:
        steps.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")

    def note_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)

    replace_file(tmp_path / "file", [b"a", b"b"])

    assert steps == ["sync file.tmp", "rename", f"sync {tmp_path.name}"]
    assert (tmp_path / "file").read_bytes() == b"ab"


@pytest.mark.parametrize("crash_at", ["write", "sync", "rename"])
def test_a_crash_while_replacing_leaves_the_old_or_the_new_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: str
) -> None:
    class Crash(BaseException):
        """Like a power loss: nobody cleans up."""

    path = tmp_path / "file"
    replace_file(path, [b"old" * 1000])

    def crash(*_: object) -> None:
        raise Crash

    def parts() -> list[bytes]:
        if crash_at == "write":
            raise Crash
        return [b"new" * 1000]

    with monkeypatch.context() as patch:
        if crash_at == "sync":
            patch.setattr(os, "fsync", crash)
        elif crash_at == "rename":
            patch.setattr(Path, "replace", crash)
        with pytest.raises(Crash):
            replace_file(path, (part for part in parts()))

    assert path.read_bytes() == b"old" * 1000
    replace_file(path, [b"newer"])
    assert path.read_bytes() == b"newer"
