"""`system check`: is a state directory whole? Looks at everything, changes nothing.

Offline: the directory's lock is held meanwhile. Each finding is one line for the
user: "ok", "note" (worth knowing, no damage) or "error".
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from swarmlet.api import pb
from swarmlet.api.errors import FailedPrecondition, SwarmletError
from swarmlet.ca.identity import FILE_NAME, Identity
from swarmlet.node.statedir import Membership, StateDir
from swarmlet.raft.journal import Journal
from swarmlet.raft.recovery import Replayed, replay
from swarmlet.raft.snapshot import Snapshot, SnapshotFile
from swarmlet.store.store import Store
from swarmlet.store.verify import loose_ends, violations

Level = Literal["ok", "note", "error"]


@dataclass(frozen=True)
class Finding:
    level: Level
    text: str


def examine(directory: Path, now: datetime) -> Iterator[Finding]:
    """What is found, in the order of looking. Raises FailedPrecondition when it cannot be looked at."""
    if not directory.is_dir():
        raise FailedPrecondition(f"there is no state directory {directory}; name it with --state-dir")
    if not (directory / "lock").exists():
        raise FailedPrecondition(f"{directory} is not the state directory of a swarmlet daemon")
    state = _locked(directory)
    try:
        yield from _examine(state, now)
    finally:
        state.close()


def _locked(directory: Path) -> StateDir:
    try:
        return StateDir(directory)
    except FailedPrecondition as error:
        if "in use" not in error.message:
            raise
        raise FailedPrecondition(
            f"a swarmlet daemon is using the state directory {directory}; stop it first"
        ) from None


def _examine(state: StateDir, now: datetime) -> Iterator[Finding]:
    try:
        membership = state.membership()
    except FailedPrecondition as error:
        yield Finding("error", error.message)
        return
    if membership is None:
        yield Finding("ok", "node.json: this node is in no swarm")
        return
    yield Finding("ok", f"node.json: node {membership.node_id} of swarm {membership.cluster_id}")
    identity = None
    try:
        identity = Identity.load(state.certificates)
    except FailedPrecondition as error:
        yield Finding("error", error.message)
    else:
        yield from _examine_identity(identity, membership, state.certificates / FILE_NAME, now)
    is_manager = identity is not None and identity.role == pb.NODE_ROLE_MANAGER
    if not state.raft.exists():
        if is_manager:
            yield Finding("error", f"{state.raft}: missing, although this node is a manager")
        return
    yield from _examine_raft(state.raft, membership, identity if is_manager else None)


def _examine_identity(
    identity: Identity | None, membership: Membership, path: Path, now: datetime
) -> Iterator[Finding]:
    if identity is None:
        yield Finding("error", f"{path}: missing, although this node is in a swarm")
        return
    if (identity.node_id, identity.cluster_id) != (membership.node_id, membership.cluster_id):
        yield Finding(
            "error",
            f"{path}: of node {identity.node_id} in swarm {identity.cluster_id}, "
            "which is not what node.json says",
        )
    elif now < identity.not_before:
        yield Finding("error", f"{path}: not valid before {identity.not_before}; is the clock right?")
    elif now > identity.not_after:
        yield Finding("error", f"{path}: expired at {identity.not_after}")
    else:
        yield Finding("ok", f"identity: key, certificate and root fit, valid until {identity.not_after}")


def _examine_raft(directory: Path, membership: Membership, manager: Identity | None) -> Iterator[Finding]:
    snapshot: Snapshot | None = None
    journal: Journal | None = None
    whole = True
    try:
        snapshot = SnapshotFile(directory / "snapshot").load()
    except (SwarmletError, OSError) as error:
        whole = False
        yield Finding("error", f"snapshot: {error}")
    else:
        yield Finding("ok", _described(snapshot))
    try:
        journal, unread_bytes = _copy_of_journal(directory / "journal")
    except (SwarmletError, OSError) as error:
        yield Finding("error", f"journal: {error}")
        return
    journal.close()
    if unread_bytes:
        yield Finding(
            "error",
            f"{directory / 'journal'}: the last {unread_bytes} bytes are not a whole frame: a write that a "
            "crash cut short, which a start of the daemon removes, or damage to what was written last",
        )
    entries = journal[:]
    span = f"entries {entries[0][1]} to {entries[-1][1]}" if entries else "no entries"
    yield Finding("ok", f"journal: {span}, term {journal.getCurrentTerm()}, every frame read")
    yield from _examine_terms(journal, snapshot)
    if whole:
        yield from _examine_state(journal, snapshot, membership, manager)


def _described(snapshot: Snapshot | None) -> str:
    if snapshot is None:
        return "snapshot: none"
    return f"snapshot: up to entry {snapshot.last_index}, {len(snapshot.state)} bytes, checksum right"


def _copy_of_journal(path: Path) -> tuple[Journal, int]:
    """The journal, and how many bytes at its end are not part of it.

    Opening a journal removes an unfinished write, so it is a copy that is opened: in
    memory, because it holds secrets. Raises OSError or JournalCorrupt.
    """
    data = path.read_bytes()
    memory = os.memfd_create("journal")
    try:
        with os.fdopen(os.dup(memory), "wb") as file:
            file.write(data)
        copy = f"/proc/self/fd/{memory}"
        try:
            journal = Journal(Path(copy))
        except SwarmletError as error:
            raise type(error)(str(error).replace(copy, str(path))) from None
        return journal, len(data) - os.fstat(memory).st_size
    finally:
        os.close(memory)


def _examine_terms(journal: Journal, snapshot: Snapshot | None) -> Iterator[Finding]:
    last = 0
    for _, index, term in journal[:]:
        if term < last:
            yield Finding("error", f"journal: entry {index} has term {term}, the one before it {last}")
        last = max(last, term)
    if snapshot is not None:
        last = max(last, snapshot.last_term)
    if last > journal.getCurrentTerm():
        yield Finding(
            "error", f"journal: an entry has term {last}, but the term is {journal.getCurrentTerm()}"
        )


def _examine_state(
    journal: Journal, snapshot: Snapshot | None, membership: Membership, manager: Identity | None
) -> Iterator[Finding]:
    store = Store(now=lambda: datetime.min, rng=random.Random(0))
    try:
        replayed = replay(journal, snapshot, store)
    except (SwarmletError, ValueError) as error:
        yield Finding("error", f"log and snapshot: {error}")
        return
    for failure in replayed.failures:
        yield Finding("error", f"journal: {failure}")
    yield Finding("ok", f"state: {_counts(store)} at entry {replayed.last_index}")
    commit = journal.getRaftCommitIndex()
    if commit < replayed.last_index:
        yield Finding(
            "note", f"journal: entries {commit + 1} to {replayed.last_index} may not be agreed on yet"
        )
    yield from _examine_members(replayed, membership, manager)
    yield from _examine_cluster(store, membership, manager)
    broken = [Finding("error", f"state: {text}") for text in violations(store.view, replayed.last_index)]
    yield from broken or [Finding("ok", "state: indexes, names, references and versions are consistent")]
    for text in loose_ends(store.view):
        yield Finding("note", f"state: {text}")


def _counts(store: Store) -> str:
    return ", ".join(
        f"{len(table)} {table.kind}{'s' * (len(table) != 1)}" for table in store.view.all_tables()
    )


def _examine_members(
    replayed: Replayed, membership: Membership, manager: Identity | None
) -> Iterator[Finding]:
    members = ", ".join(f"{node_id} at {address}" for node_id, address in sorted(replayed.members.items()))
    yield Finding("ok", f"managers: {members or 'none known yet'}")
    address = replayed.members.get(membership.node_id)
    if manager is not None and address is None:
        yield Finding("note", "managers: this node is not among them (yet)")
    elif address is not None and address != membership.advertise_addr:
        yield Finding("note", f"managers: this node has moved from {address} to {membership.advertise_addr}")


def _examine_cluster(store: Store, membership: Membership, manager: Identity | None) -> Iterator[Finding]:
    cluster = store.view.cluster()
    if cluster is None:
        yield Finding("note", "state: this manager has not received the swarm's state yet")
        return
    if cluster.id != membership.cluster_id:
        yield Finding("error", f"state: of swarm {cluster.id}, node.json names {membership.cluster_id}")
    if manager is not None and manager.root_pem.strip() not in cluster.root_ca.certificate_pem:
        yield Finding("note", "identity: its root certificate is not the one in the swarm's state")
