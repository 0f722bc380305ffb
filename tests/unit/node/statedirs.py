"""State directories as a manager leaves them behind."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from swarmlet.api import pb
from swarmlet.ca.identity import Identity, new_key_and_csr
from swarmlet.ca.root import RootCA
from swarmlet.node.statedir import Membership, StateDir
from swarmlet.raft.engine import DATA
from swarmlet.raft.node import RaftFiles, bootstrap
from swarmlet.store.objects import wrap
from swarmlet.store.tables import StoredObject
from tests.builders import a_cluster, a_node, a_service, a_task

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ADDRESS = "10.0.0.1:2377"


@dataclass(frozen=True)
class Left:
    """A directory of a manager of a swarm of three, and what is in it."""

    path: Path
    identity: Identity
    service: pb.Service
    task: pb.Task

    @property
    def journal(self) -> Path:
        return self.path / "raft" / "journal"


def transaction(
    *values: StoredObject, kind: pb.ChangeKind.ValueType = pb.CHANGE_KIND_CREATE, expected: int = 0
) -> bytes:
    made = pb.Transaction(operation_id=f"op{random.random()}")
    made.time.FromDatetime(NOW)
    for value in values:
        made.changes.add(kind=kind, object=wrap(value), expected_version=expected)
    return made.SerializeToString()


def a_state_directory(path: Path) -> Left:
    root = RootCA.create(NOW)
    key, csr = new_key_and_csr()
    pem = root.sign(csr, node_id="one", role=pb.NODE_ROLE_MANAGER, cluster_id="cluster", now=NOW)
    identity = Identity.from_pem(certificate_pem=pem, key_pem=key, root_pem=root.certificate_pem)
    cluster = a_cluster(id="cluster")
    cluster.root_ca.certificate_pem = root.certificate_pem
    cluster.root_ca.private_key_pem = root.private_key_pem
    cluster.join_tokens.worker, cluster.join_tokens.manager = "worker token", "manager token"
    nodes = [a_node(name, id=name, role=pb.NODE_ROLE_MANAGER) for name in ("one", "two", "three")]
    for node in nodes:
        node.manager_status.addr = ADDRESS
    service = a_service("web")
    task = a_task(service, node_id="two")
    state = StateDir(path)
    identity.save(state.certificates)
    state.save_membership(Membership("one", "cluster", ADDRESS, (ADDRESS, "10.0.0.2:2377")))
    files = RaftFiles(state.raft)
    bootstrap(files, pb.RaftMember(node_id="one", address=ADDRESS))
    for index, data in enumerate((transaction(cluster, *nodes), transaction(service), transaction(task)), 3):
        files.journal.add(DATA + data, index, 1)
        files.journal.sync()
    files.journal.close()
    state.close()
    return Left(path, identity, service, task)


def add_entry(left: Left, command: bytes, term: int = 1) -> None:
    files = RaftFiles(left.path / "raft")
    files.journal.add(command, files.journal[-1][1] + 1, term)
    files.journal.setCurrentTerm(max(term, files.journal.getCurrentTerm()), None)
    files.journal.sync()
    files.journal.close()
