"""One manager goes on alone: from its own files, or from a backup.

Called by the daemon while no manager of this process uses the files. Blocking: in a
thread. Durable on return.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from swarmlet.api import pb
from swarmlet.api.errors import FailedPrecondition, InvalidArgument
from swarmlet.api.ids import new_id
from swarmlet.ca.identity import Identity, new_key_and_csr
from swarmlet.ca.root import RootCA
from swarmlet.control.alone import alone_transaction
from swarmlet.raft.node import RaftFiles
from swarmlet.raft.recovery import found_group, replay, reset_members
from swarmlet.raft.snapshot import Snapshot
from swarmlet.store.store import Store

BACKUP_FORMAT = 1


def make_group_of_one(
    directory: Path, *, node_id: str, address: str, hostname: str, now: datetime, rng: random.Random
) -> None:
    """Turns a manager's files into those of a group in which it is the only member.

    Services, tasks, secrets, tokens and the CA stay; other managers' nodes stay as
    workers. Raises FailedPrecondition when there is nothing to go on from,
    JournalCorrupt, SnapshotCorrupt or OSError; the files are then as they were.
    """
    files = RaftFiles(directory)
    try:
        store = Store(now=lambda: now, rng=rng)
        replayed = replay(files.journal, files.snapshot, store)
        if store.view.cluster() is None:
            raise FailedPrecondition(
                "this manager has not received the swarm's state yet, so no cluster can be made from it; "
                "use another manager, or restore a backup"
            )
        transaction = alone_transaction(
            store.view, node_id=node_id, address=address, hostname=hostname, now=now, rng=rng
        )
        reset_members(
            files.journal,
            replayed,
            pb.RaftMember(node_id=node_id, address=address),
            [transaction.SerializeToString()],
        )
    finally:
        files.journal.close()


def restored_store(header: pb.BackupHeader, state: bytes, *, now: datetime, rng: random.Random) -> Store:
    """The state that a backup holds. Raises InvalidArgument for one that cannot be used."""
    if header.format != BACKUP_FORMAT:
        raise InvalidArgument(
            f"the backup has format {header.format}; this version reads format {BACKUP_FORMAT}"
        )
    store = Store(now=lambda: now, rng=rng)
    try:
        store.restore(header.raft_index, state)
    except ValueError as error:
        raise InvalidArgument(f"the backup does not hold the state of a swarm: {error}") from error
    cluster = store.view.cluster()
    if cluster is None or cluster.id != header.cluster_id:
        raise InvalidArgument("the backup does not hold the state of the swarm that it names")
    if not cluster.root_ca.private_key_pem:
        raise InvalidArgument("the backup does not hold the key of the swarm's CA")
    return store


def new_identity(cluster: pb.Cluster, now: datetime, rng: random.Random) -> Identity:
    """A manager of the cluster, signed with the cluster's own root.

    A new node, never the one that wrote a backup: that one may come back.
    """
    root = RootCA(cluster.root_ca.certificate_pem, cluster.root_ca.private_key_pem)
    key, csr = new_key_and_csr()
    certificate = root.sign(
        csr, node_id=new_id(rng), role=pb.NODE_ROLE_MANAGER, cluster_id=cluster.id, now=now
    )
    return Identity.from_pem(certificate_pem=certificate, key_pem=key, root_pem=root.certificate_pem)


def found_from_backup(
    directory: Path,
    header: pb.BackupHeader,
    store: Store,
    *,
    node_id: str,
    address: str,
    hostname: str,
    now: Callable[[], datetime],
    rng: random.Random,
) -> None:
    """Makes the files of a group whose only member is `node_id`, with the state of `store`."""
    index = header.raft_index + 1
    transaction = alone_transaction(
        store.view, node_id=node_id, address=address, hostname=hostname, now=now(), rng=rng
    )
    refused = store.apply(index, transaction.SerializeToString())
    if refused is not None:
        raise refused
    found_group(
        directory,
        Snapshot(
            last_index=index,
            last_term=header.raft_term + 1,
            members=[pb.RaftMember(node_id=node_id, address=address)],
            state=store.snapshot()(),
            # Managers of before the backup have no say in what is made of it.
            generation=header.generation + 1,
        ),
    )
