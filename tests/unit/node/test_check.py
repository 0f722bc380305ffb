"""`system check` on directories that are whole, and on damaged ones: it says so and changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmlet.api import pb
from swarmlet.api.errors import FailedPrecondition
from swarmlet.ca.identity import FILE_NAME
from swarmlet.node.check import Finding, examine
from swarmlet.node.statedir import StateDir
from swarmlet.raft.engine import DATA
from swarmlet.raft.journal import Journal
from swarmlet.raft.snapshot import Snapshot, SnapshotFile
from tests.builders import a_service
from tests.unit.node.statedirs import NOW, Left, a_state_directory, add_entry, transaction


@pytest.fixture
def left(tmp_path: Path) -> Left:
    return a_state_directory(tmp_path / "state")


def found(left: Left) -> list[Finding]:
    return list(examine(left.path, NOW))


def errors(left: Left) -> list[str]:
    return [finding.text for finding in found(left) if finding.level == "error"]


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_whole_directory_has_no_errors(left: Left) -> None:
    assert {finding.level for finding in found(left)} <= {"ok", "note"}
    assert any("1 service, 1 task" in finding.text for finding in found(left))


def test_a_node_in_no_swarm_is_fine(tmp_path: Path) -> None:
    StateDir(tmp_path / "state").close()

    assert [finding.level for finding in examine(tmp_path / "state", NOW)] == ["ok"]


def test_a_directory_in_use_or_of_somebody_else_is_left_alone(left: Left, tmp_path: Path) -> None:
    state = StateDir(left.path)
    with pytest.raises(FailedPrecondition, match="stop it first"):
        found(left)
    state.close()
    (tmp_path / "empty").mkdir()

    with pytest.raises(FailedPrecondition, match="not the state directory"):
        list(examine(tmp_path / "empty", NOW))
    with pytest.raises(FailedPrecondition, match="no state directory"):
        list(examine(tmp_path / "none", NOW))

    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "none").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_of_the_journal_is_found_and_stays(left: Left, data: st.DataObject) -> None:
    whole = left.journal.read_bytes()
    content = bytearray(whole)
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    left.journal.write_bytes(content)
    before = contents(left.path)

    said = errors(left)

    assert any("journal" in text for text in said)
    assert contents(left.path) == before
    left.journal.write_bytes(whole)


def test_an_unfinished_write_is_told_and_not_removed(left: Left) -> None:
    content = left.journal.read_bytes()[:-5]
    left.journal.write_bytes(content)

    assert any("not a whole frame" in text for text in errors(left))
    assert left.journal.read_bytes() == content


def _cut_node_json(left: Left) -> None:
    path = left.path / "node.json"
    path.write_bytes(path.read_bytes()[:20])


def _of_another_cluster(left: Left) -> None:
    path = left.path / "node.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "cluster_id": "other"}))


def _no_identity(left: Left) -> None:
    (left.path / "certificates" / FILE_NAME).unlink()


def _another_key(left: Left) -> None:
    other = a_state_directory(left.path.with_name("other"))
    mine = left.path / "certificates" / FILE_NAME
    mine.write_bytes(other.identity.key_pem + left.identity.certificate_pem)


def _no_raft(left: Left) -> None:
    shutil.rmtree(left.path / "raft")


def _damaged_snapshot(left: Left) -> None:
    content = bytearray(Snapshot(3, 1, [], b"state").encode())
    content[-40] ^= 1
    (left.path / "raft" / "snapshot").write_bytes(content)


def _snapshot_is_missing(left: Left) -> None:
    journal = Journal(left.journal)
    journal.deleteEntriesTo(3)
    journal.sync()
    journal.close()


def _snapshot_of_something_else(left: Left) -> None:
    SnapshotFile(left.path / "raft" / "snapshot").write(Snapshot(3, 1, [], b"\xff\xff\xff").encode())


def _terms_fall(left: Left) -> None:
    add_entry(left, DATA + transaction(a_service("late")), term=4)
    add_entry(left, DATA + transaction(a_service("later")), term=3)


def _entry_cannot_be_applied(left: Left) -> None:
    add_entry(left, DATA + b"\xff\xff\xff")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut_node_json, "node.json is damaged"),
        (_of_another_cluster, "not what node.json says"),
        (_no_identity, "missing, although this node is in a swarm"),
        (_another_key, "does not belong to the certificate"),
        (_no_raft, "missing, although this node is a manager"),
        (_damaged_snapshot, "checksum does not match"),
        (_snapshot_is_missing, "begins at entry 4"),
        (_snapshot_of_something_else, "not a snapshot of the store"),
        (_terms_fall, "entry 7 has term 3, the one before it 4"),
        (_entry_cannot_be_applied, "entry 6 cannot be applied"),
    ],
)
def test_damage_is_named(left: Left, damage: Callable[[Left], None], said: str) -> None:
    damage(left)

    assert any(said in text for text in errors(left)), errors(left)


def test_an_expired_certificate_and_a_wrong_clock_are_errors(left: Left) -> None:
    for moment, said in ((timedelta(days=400), "expired"), (-timedelta(days=2), "not valid before")):
        texts = [f.text for f in examine(left.path, NOW + moment) if f.level == "error"]

        assert len(texts) == 1 and said in texts[0]


def test_a_version_from_the_future_is_an_error(left: Left) -> None:
    task = pb.Task()
    task.CopyFrom(left.task)
    task.version.index = 1000
    state = pb.StoreSnapshot()
    state.objects.add().task.CopyFrom(task)
    SnapshotFile(left.path / "raft" / "snapshot").write(
        Snapshot(5, 1, [], state.SerializeToString()).encode()
    )

    assert any("has version 1000, but the state is at index 5" in text for text in errors(left))


def test_what_the_leader_has_yet_to_clear_up_is_a_note(left: Left) -> None:
    service = pb.Service(id=left.service.id)
    add_entry(left, DATA + transaction(service, kind=pb.CHANGE_KIND_DELETE, expected=4))

    assert errors(left) == []
    assert any(f.level == "note" and "which was removed" in f.text for f in found(left))
