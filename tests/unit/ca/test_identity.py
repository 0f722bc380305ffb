"""A node's identity: its parts belong together, and its file survives crashes."""

from __future__ import annotations

import os
import random
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.api.errors import FailedPrecondition, InvalidArgument
from swarmlet.ca.identity import FILE_NAME, Identity, new_key_and_csr
from tests.unit.ca.builders import CLUSTER_ID, MANAGER, WORKER, Cluster

CLUSTER = Cluster()
SAVED = CLUSTER.manager("m1")
SAVED_BYTES = SAVED.key_pem + SAVED.certificate_pem


def test_identity_states_what_was_signed() -> None:
    identity = CLUSTER.identity("n7", WORKER, lifetime=timedelta(days=30))

    assert (identity.node_id, identity.role, identity.cluster_id) == ("n7", WORKER, CLUSTER_ID)
    assert identity.root_pem == CLUSTER.root.certificate_pem
    assert identity.not_after - identity.not_before == timedelta(days=30, hours=1)
    assert identity.is_valid(CLUSTER.now)
    assert not identity.is_valid(CLUSTER.now + timedelta(days=31))


def test_private_key_is_not_in_the_repr() -> None:
    assert "PRIVATE" not in repr(SAVED)


def test_key_of_another_certificate_is_refused() -> None:
    other_key, _ = new_key_and_csr()

    with pytest.raises(InvalidArgument, match="does not belong to the certificate"):
        Identity.from_pem(certificate_pem=SAVED.certificate_pem, key_pem=other_key, root_pem=SAVED.root_pem)


def test_root_of_another_cluster_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not signed by the root"):
        Identity.from_pem(
            certificate_pem=SAVED.certificate_pem,
            key_pem=SAVED.key_pem,
            root_pem=Cluster().root.certificate_pem,
        )


def test_certificate_that_names_no_node_is_refused() -> None:
    root = CLUSTER.root

    with pytest.raises(InvalidArgument, match="does not name exactly one node"):
        Identity.from_pem(
            certificate_pem=root.certificate_pem,
            key_pem=root.private_key_pem,
            root_pem=root.certificate_pem,
        )


@pytest.mark.parametrize("part", ["certificate_pem", "key_pem", "root_pem"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\x00"])
def test_part_that_is_no_pem_is_refused(part: str, content: bytes) -> None:
    parts = {
        "certificate_pem": SAVED.certificate_pem,
        "key_pem": SAVED.key_pem,
        "root_pem": SAVED.root_pem,
        part: content,
    }

    with pytest.raises(InvalidArgument, match="PEM"):
        Identity.from_pem(**parts)


@given(st.integers(), st.integers(1, 90 * 24))
def test_renewal_falls_between_half_and_four_fifths_of_the_life(seed: int, hours: int) -> None:
    life = timedelta(hours=hours)
    signed = CLUSTER.now.replace(microsecond=0)
    identity = Identity(
        node_id="n1",
        role=WORKER,
        cluster_id=CLUSTER_ID,
        certificate_pem=b"",
        key_pem=b"",
        root_pem=b"",
        not_before=signed - timedelta(hours=1),
        not_after=signed + life,
    )

    due = identity.renew_at(random.Random(seed))

    assert signed + 0.5 * life <= due <= signed + 0.8 * life


def test_saved_identity_is_loaded(tmp_path: Path) -> None:
    SAVED.save(tmp_path / "certificates")

    assert Identity.load(tmp_path / "certificates") == SAVED


def test_directory_without_an_identity_holds_none(tmp_path: Path) -> None:
    assert Identity.load(tmp_path) is None
    assert Identity.load(tmp_path / "missing") is None


def test_file_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        SAVED.save(tmp_path / "certificates")
    finally:
        os.umask(former)

    assert stat.S_IMODE((tmp_path / "certificates" / FILE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "certificates").stat().st_mode) == 0o700


def test_renewed_identity_replaces_the_former_and_leaves_nothing_aside(tmp_path: Path) -> None:
    renewed = CLUSTER.identity("m1", MANAGER)
    SAVED.save(tmp_path)

    renewed.save(tmp_path)

    assert Identity.load(tmp_path) == renewed
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def test_what_a_crash_left_aside_harms_neither_loading_nor_saving(tmp_path: Path) -> None:
    SAVED.save(tmp_path)
    aside = tmp_path / f"{FILE_NAME}.new"
    aside.write_bytes(b"half of a k")
    aside.chmod(0o644)

    loaded = Identity.load(tmp_path)
    SAVED.save(tmp_path)

    assert loaded == SAVED
    assert Identity.load(tmp_path) == SAVED
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_full_disk_keeps_the_former_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    SAVED.save(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "rename":
        monkeypatch.setattr(Path, "rename", fail)
    else:
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FailedPrecondition, match=r"identity\.pem: No space left"):
        CLUSTER.manager("m1").save(tmp_path)
    monkeypatch.undo()

    assert Identity.load(tmp_path) == SAVED
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


@given(st.integers(0, len(SAVED_BYTES) - 1))
def test_truncated_file_is_a_clear_error_wherever_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    directory = tmp_path_factory.mktemp("cut")
    path = directory / FILE_NAME
    path.write_bytes(SAVED_BYTES[:length])

    with pytest.raises(FailedPrecondition) as refused:
        Identity.load(directory)

    assert str(path) in str(refused.value)
    assert "is damaged" in str(refused.value)
    assert "PRIVATE" not in str(refused.value)


def test_mismatched_parts_in_the_file_are_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(CLUSTER.manager().key_pem + SAVED.certificate_pem)

    with pytest.raises(
        FailedPrecondition, match=r"identity\.pem is damaged: the private key does not belong"
    ):
        Identity.load(tmp_path)


def test_unreadable_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()

    with pytest.raises(FailedPrecondition, match=r"cannot read .*identity\.pem: Is a directory"):
        Identity.load(tmp_path)
