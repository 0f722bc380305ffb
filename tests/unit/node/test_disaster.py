"""One manager goes on alone, from its files or from a backup: what is kept, and who is what afterwards."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import FailedPrecondition, InvalidArgument
from swarmlet.node.disaster import found_from_backup, make_group_of_one, new_identity, restored_store
from swarmlet.raft.node import RaftFiles, bootstrap
from swarmlet.raft.recovery import Replayed, replay
from swarmlet.store.store import Store
from tests.unit.node.statedirs import NOW, Left, a_state_directory

RNG = random.Random(1)


@pytest.fixture
def left(tmp_path: Path) -> Left:
    return a_state_directory(tmp_path / "state")


def replayed(raft: Path) -> tuple[Replayed, Store]:
    files, store = RaftFiles(raft), Store(now=lambda: NOW, rng=RNG)
    try:
        return replay(files.journal, files.snapshot, store), store
    finally:
        files.journal.close()


def alone(raft: Path, address: str = "10.0.0.9:2377") -> None:
    make_group_of_one(raft, node_id="one", address=address, hostname="one", now=NOW, rng=RNG)


def backup_of(left: Left) -> tuple[pb.BackupHeader, bytes]:
    done, store = replayed(left.path / "raft")
    header = pb.BackupHeader(
        format=1, cluster_id="cluster", raft_index=done.last_index, raft_term=7, generation=done.generation
    )
    return header, store.snapshot()()


def test_the_survivor_keeps_everything_and_is_the_only_manager(left: Left) -> None:
    _, before = replayed(left.path / "raft")

    alone(left.path / "raft")

    done, store = replayed(left.path / "raft")
    assert done.members == {"one": "10.0.0.9:2377"}
    for table, former in zip(store.view.all_tables(), before.view.all_tables(), strict=True):
        assert {value.id for value in table} == {value.id for value in former}
    assert store.view.cluster() == before.view.cluster()
    assert store.view.services.get(left.service.id) == before.view.services.get(left.service.id)
    roles = {node.id: node.spec.role for node in store.view.nodes}
    assert roles == {
        "one": pb.NODE_ROLE_MANAGER,
        "two": pb.NODE_ROLE_WORKER,
        "three": pb.NODE_ROLE_WORKER,
    }
    assert [node.id for node in store.view.nodes if node.HasField("manager_status")] == ["one"]


def test_a_manager_that_knows_nothing_yet_is_no_basis(tmp_path: Path) -> None:
    files = RaftFiles(tmp_path)
    bootstrap(files, pb.RaftMember(node_id="one", address="a:1"))
    files.journal.close()
    before = (tmp_path / "journal").read_bytes()

    with pytest.raises(FailedPrecondition, match="has not received"):
        alone(tmp_path)

    assert (tmp_path / "journal").read_bytes() == before


def test_a_restored_cluster_is_the_same_with_a_new_manager(left: Left, tmp_path: Path) -> None:
    header, state = backup_of(left)
    store = restored_store(header, state, now=NOW, rng=RNG)
    cluster = store.view.cluster()
    assert cluster is not None
    identity = new_identity(cluster, NOW, RNG)

    found_from_backup(
        tmp_path / "new" / "raft",
        header,
        store,
        node_id=identity.node_id,
        address="10.0.0.9:2377",
        hostname="fresh",
        now=lambda: NOW,
        rng=RNG,
    )

    done, restored = replayed(tmp_path / "new" / "raft")
    assert done.members == {identity.node_id: "10.0.0.9:2377"}
    assert done.generation == header.generation + 1
    assert done.last_index > header.raft_index
    assert restored.view.cluster() == cluster
    assert restored.view.services.by_name("web") is not None
    assert identity.cluster_id == "cluster" and identity.role == pb.NODE_ROLE_MANAGER
    roles = {node.id: node.spec.role for node in restored.view.nodes}
    assert {k for k, role in roles.items() if role == pb.NODE_ROLE_MANAGER} == {identity.node_id}
    assert {"one", "two", "three"} < roles.keys()


def test_a_backup_that_is_none_of_the_swarm_it_names_is_refused(left: Left) -> None:
    header, state = backup_of(left)
    other = pb.BackupHeader()
    other.CopyFrom(header)
    other.cluster_id = "other"
    newer = pb.BackupHeader()
    newer.CopyFrom(header)
    newer.format = 2

    for wrong, content in ((other, state), (newer, state), (header, b"\xff\xff"), (header, b"")):
        with pytest.raises(InvalidArgument):
            restored_store(wrong, content, now=NOW, rng=RNG)
