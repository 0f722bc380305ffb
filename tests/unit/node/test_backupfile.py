"""The backup file: whole and with the right passphrase it opens, anything else is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument
from swarmlet.node import backupfile

HEADER = pb.BackupHeader(cluster_id="cluster", node_id="node", raft_index=42, raft_term=3)
STATE = b"what the cluster knows" * 4


@pytest.fixture(autouse=True, scope="module")
def cheap_keys() -> object:
    """Hundreds of keys are made in here; how expensive one is does not matter to any test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backupfile, "SCRYPT_N", 2)
        yield


@given(state=st.binary(max_size=200), passphrase=st.none() | st.text(min_size=1))
def test_what_was_saved_is_read(state: bytes, passphrase: str | None) -> None:
    sealed = backupfile.decode(backupfile.encode(HEADER, state, passphrase), "file")

    assert sealed.open(passphrase) == state
    assert sealed.is_encrypted == (passphrase is not None)
    assert (sealed.header.cluster_id, sealed.header.raft_index) == ("cluster", 42)


@pytest.mark.parametrize("passphrase", [None, "secret"])
@given(data=st.data())
def test_a_file_that_was_cut_short_is_refused(passphrase: str | None, data: st.DataObject) -> None:
    content = backupfile.encode(HEADER, STATE, passphrase)
    end = data.draw(st.integers(0, len(content) - 1))

    with pytest.raises(InvalidArgument, match=r"not a backup|damaged or incomplete"):
        backupfile.decode(content[:end], "file")


@pytest.mark.parametrize("passphrase", [None, "secret"])
@given(data=st.data())
def test_a_flipped_bit_is_found(passphrase: str | None, data: st.DataObject) -> None:
    content = bytearray(backupfile.encode(HEADER, STATE, passphrase))
    bit = data.draw(st.integers(0, len(content) * 8 - 1))

    content[bit // 8] ^= 1 << bit % 8

    with pytest.raises(InvalidArgument, match=r"^file "):
        backupfile.decode(bytes(content), "file")


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        backupfile.decode(data, "file")
    with pytest.raises(InvalidArgument):
        backupfile.decode(backupfile.MAGIC + data, "file")


@given(right=st.text(min_size=1), wrong=st.text(min_size=1))
def test_a_wrong_passphrase_is_called_so(right: str, wrong: str) -> None:
    sealed = backupfile.decode(backupfile.encode(HEADER, STATE, right), "file")
    if right == wrong:
        return

    with pytest.raises(InvalidArgument, match="wrong passphrase for file"):
        sealed.open(wrong)


def test_an_encrypted_file_does_not_open_without_a_passphrase() -> None:
    sealed = backupfile.decode(backupfile.encode(HEADER, STATE, "secret"), "file")

    with pytest.raises(InvalidArgument, match="passphrase is needed"):
        sealed.open(None)


def test_nothing_of_the_state_is_readable_in_an_encrypted_file() -> None:
    content = backupfile.encode(HEADER, STATE, "secret")

    assert STATE[:8] not in content
    assert content != backupfile.encode(HEADER, STATE, "secret")


def test_a_header_that_asks_for_an_absurd_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = backupfile.encode(HEADER, STATE, "secret")
    monkeypatch.setattr(backupfile, "SCRYPT_BYTES_MAX", 1)

    with pytest.raises(InvalidArgument, match="cannot read"):
        backupfile.decode(content, "file")


def test_a_file_is_written_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "backup"

    backupfile.write(path, b"content", overwrite=False)

    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_only_replaced_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    path.write_bytes(b"older")

    with pytest.raises(FileExistsError):
        backupfile.write(path, b"newer", overwrite=False)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]
    backupfile.write(path, b"newer", overwrite=True)

    assert path.read_bytes() == b"newer"
    assert path.stat().st_mode & 0o777 == 0o600
