"""The store: a state machine for raft below, transactions and watches above.

One event loop, no locks. Between two awaits the tables do not change, so a reader
that does not await sees one consistent state.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol, TypeVar

from swarmlet.api import pb
from swarmlet.api.errors import AlreadyExists, Conflict, NotFound, SwarmletError
from swarmlet.api.ids import new_id
from swarmlet.store.tables import StoredObject, T, Tables
from swarmlet.store.watch import Change, ChangeFilter, Watcher, WatchHub

R = TypeVar("R")

CHANGES_MAX = 200
"""Changes in one transaction (SwarmKit's MaxChangesPerTransaction)."""
TRANSACTION_BYTES_MAX = 1_500_000
"""Size of one encoded transaction (SwarmKit's MaxTransactionBytes)."""
OPERATIONS_REMEMBERED = 10_000
"""How many operation ids are kept to recognise a repeated one."""
RETRIES_MAX = 10

_FIELD_OF: dict[type[StoredObject], str] = {
    pb.Cluster: "cluster",
    pb.Node: "node",
    pb.Service: "service",
    pb.Task: "task",
    pb.Network: "network",
    pb.Secret: "secret",
    pb.Config: "config",
}


class Proposer(Protocol):
    """What the store needs of agreement."""

    async def propose(self, data: bytes) -> object:
        """Returns what `apply` returned for this entry, once it is committed and applied here.

        Raises Unavailable or NotLeader (not done) or UnknownOutcome.
        """


class Transaction:
    """Reads the state and collects changes. Made by `Store.update`, never kept."""

    def __init__(self, tables: Tables, ids: Callable[[], str]) -> None:
        self.view = tables
        self._ids = ids
        self._changes: dict[tuple[type[StoredObject], str], pb.StoreChange] = {}

    def new_id(self) -> str:
        return self._ids()

    def get(self, kind: type[T], object_id: str) -> T | None:
        """The object as this transaction leaves it so far."""
        change = self._changes.get((kind, object_id))
        if change is not None:
            return None if change.kind == pb.CHANGE_KIND_DELETE else _unwrap(kind, change.object)
        return self.view.table_of(kind).get(object_id)

    def create(self, value: T) -> None:
        """Adds an object; its id must be set and new. Raises AlreadyExists for a taken name or id."""
        if self.get(type(value), value.id) is not None:
            raise AlreadyExists(f"{_FIELD_OF[type(value)]} {value.id} already exists")
        self.view.table_of(type(value)).check_name(value)
        self._record(pb.CHANGE_KIND_CREATE, value, expected_version=0)

    def update(self, value: T) -> None:
        """Replaces an object; `value.version` must be the one that was read."""
        current = self.get(type(value), value.id)
        if current is None:
            raise NotFound(f"{_FIELD_OF[type(value)]} {value.id} not found")
        if current.version.index != value.version.index:
            raise Conflict("update out of sequence")
        self.view.table_of(type(value)).check_name(value)
        pending = self._changes.get((type(value), value.id))
        kind = pb.CHANGE_KIND_UPDATE if pending is None else pending.kind
        self._record(kind, value, expected_version=value.version.index)

    def delete(self, kind: type[T], object_id: str) -> None:
        """Removes an object as it is now. Raises NotFound."""
        current = self.get(kind, object_id)
        if current is None:
            raise NotFound(f"{_FIELD_OF[kind]} {object_id} not found")
        pending = self._changes.get((kind, object_id))
        if pending is not None and pending.kind == pb.CHANGE_KIND_CREATE:
            del self._changes[kind, object_id]
            return
        tombstone = kind(id=object_id)
        self._record(pb.CHANGE_KIND_DELETE, tombstone, expected_version=current.version.index)

    @property
    def changes(self) -> list[pb.StoreChange]:
        return list(self._changes.values())

    def try_unit(self, unit: Callable[[Transaction], None], *, is_first: bool) -> bool:
        """Runs a unit of a batch; False, with nothing changed, when it no longer fits this transaction."""
        before = dict(self._changes)
        try:
            unit(self)
        except (Conflict, NotFound, AlreadyExists):
            self._changes = before
            return True
        fits = len(self._changes) <= CHANGES_MAX and (
            sum(c.ByteSize() for c in self._changes.values()) <= TRANSACTION_BYTES_MAX
        )
        if not fits and not is_first:
            self._changes = before
            return False
        return True

    def _record(self, kind: pb.ChangeKind.ValueType, value: StoredObject, expected_version: int) -> None:
        change = pb.StoreChange(kind=kind, expected_version=expected_version)
        getattr(change.object, _FIELD_OF[type(value)]).CopyFrom(value)
        self._changes[type(value), value.id] = change


class Store:
    """The cluster's state on this manager."""

    def __init__(self, *, now: Callable[[], datetime], rng: random.Random) -> None:
        self._tables = Tables()
        self._operations: dict[str, int] = {}
        self._hub = WatchHub()
        self._proposer: Proposer | None = None
        self._now = now
        self._rng = rng
        self.applied_index = 0

    # ---- reading

    @property
    def view(self) -> Tables:
        """The state as it is now; do not hold a result across an await."""
        return self._tables

    def operation_index(self, operation_id: str) -> int | None:
        """The raft index at which an operation was applied, if it was and is remembered."""
        return self._operations.get(operation_id)

    @contextmanager
    def watching(self, wanted: ChangeFilter | None = None) -> Iterator[Watcher]:
        """A watcher of every change from this moment on; read the view first, without an await between."""
        watcher = self._hub.subscribe(wanted)
        try:
            yield watcher
        finally:
            self._hub.unsubscribe(watcher)

    async def changes(self, wanted: ChangeFilter | None = None) -> AsyncIterator[list[Change]]:
        """`watching` as a plain iterator. Raises WatchOverflow when the reader was too slow."""
        with self.watching(wanted) as watcher:
            while True:
                yield await watcher.next()

    # ---- writing

    def attach(self, proposer: Proposer) -> None:
        self._proposer = proposer

    async def update(self, change: Callable[[Transaction], R], *, operation_id: str = "") -> R:
        """Runs `change` and commits what it did, whole or not at all; returns when applied here.

        `change` must not await and is run again, on newer state, when somebody else was
        faster. What it raises is passed on and nothing is written. With an
        `operation_id`, doing the same again changes nothing more.
        """
        conflict: SwarmletError | None = None
        for _ in range(RETRIES_MAX):
            transaction = Transaction(self._tables, lambda: new_id(self._rng))
            result = change(transaction)
            if not transaction.changes:
                return result
            try:
                await self._commit(transaction.changes, operation_id)
            except Conflict as error:
                conflict = error
                continue
            return result
        raise Conflict(f"gave up after {RETRIES_MAX} attempts: {conflict}")

    async def batch(self, units: Iterable[Callable[[Transaction], None]]) -> int:
        """Commits many independent units in as few transactions as the limits allow.

        A unit is never split. It may be run again, on newer state, so it checks what it
        relies on; one that raises Conflict, NotFound or AlreadyExists is left out.
        Returns the number of changes committed.
        """
        waiting = list(units)
        committed = 0
        while waiting:
            count, taken = await self._commit_group(waiting)
            committed += count
            waiting = waiting[taken:]
        return committed

    async def _commit_group(self, units: list[Callable[[Transaction], None]]) -> tuple[int, int]:
        """Commits as many of the first units as fit; returns (changes committed, units done with)."""
        for _ in range(RETRIES_MAX):
            transaction = Transaction(self._tables, lambda: new_id(self._rng))
            taken = 0
            for unit in units:
                if not transaction.try_unit(unit, is_first=taken == 0):
                    break
                taken += 1
            if not transaction.changes:
                return 0, taken
            try:
                await self._commit(transaction.changes, "")
            except (Conflict, AlreadyExists):
                continue
            return len(transaction.changes), taken
        return 0, taken

    async def _commit(self, changes: list[pb.StoreChange], operation_id: str) -> None:
        if self._proposer is None:
            raise RuntimeError("the store has no proposer")
        transaction = pb.Transaction(operation_id=operation_id or new_id(self._rng), changes=changes)
        transaction.time.FromDatetime(self._now())
        outcome = await self._proposer.propose(transaction.SerializeToString())
        if isinstance(outcome, SwarmletError):
            raise outcome

    # ---- the state machine that raft drives

    def apply(self, index: int, data: bytes) -> SwarmletError | None:
        """Applies one committed entry; the same everywhere, whatever this manager knows besides.

        Returns None, or the error with which the whole transaction was refused.
        """
        self.applied_index = index
        transaction = pb.Transaction.FromString(data)
        if transaction.operation_id in self._operations:
            return None
        try:
            self._check(transaction)
        except SwarmletError as error:
            return error
        applied = [self._apply_change(index, transaction, change) for change in transaction.changes]
        self._remember(transaction.operation_id, index)
        self._hub.publish(applied)
        return None

    def _check(self, transaction: pb.Transaction) -> None:
        """Raises the error for which the transaction as a whole cannot be applied now."""
        new_names: set[tuple[str, str]] = set()
        for change in transaction.changes:
            value = unwrap(change.object)
            table = self._tables.table_for(value)
            current = table.get(value.id)
            if change.kind == pb.CHANGE_KIND_CREATE:
                if current is not None:
                    raise AlreadyExists(f"{table.kind} {value.id} already exists")
            elif current is None or current.version.index != change.expected_version:
                raise Conflict("update out of sequence")
            if change.kind == pb.CHANGE_KIND_DELETE:
                continue
            table.check_name(value)
            name = (table.kind, table.unique_name(value))
            if name[1]:
                if name in new_names:
                    raise AlreadyExists(f"{name[0]} {name[1]} already exists")
                new_names.add(name)

    def _apply_change(self, index: int, transaction: pb.Transaction, change: pb.StoreChange) -> Change:
        value = unwrap(change.object)
        table = self._tables.table_for(value)
        if change.kind == pb.CHANGE_KIND_DELETE:
            return Change(change.kind, index, old=table.remove(value.id), new=None)
        value.version.index = index
        value.updated_at.CopyFrom(transaction.time)
        old = table.get(value.id)
        if old is None:
            value.created_at.CopyFrom(transaction.time)
        table.put(value)
        return Change(change.kind, index, old=old, new=value)

    def _remember(self, operation_id: str, index: int) -> None:
        self._operations[operation_id] = index
        if len(self._operations) > OPERATIONS_REMEMBERED:
            del self._operations[next(iter(self._operations))]

    def snapshot(self) -> Callable[[], bytes]:
        """A consistent copy, cheap to take; the returned function encodes it and may run in a thread."""
        objects = [value for table in self._tables.all_tables() for value in table]
        operations = list(self._operations.items())

        def encode() -> bytes:
            snapshot = pb.StoreSnapshot()
            for value in objects:
                getattr(snapshot.objects.add(), _FIELD_OF[type(value)]).CopyFrom(value)
            for operation_id, index in operations:
                snapshot.operations.add(operation_id=operation_id, index=index)
            return snapshot.SerializeToString()

        return encode

    def restore(self, index: int, data: bytes) -> None:
        """Replaces everything by a snapshot; watchers are told to start over."""
        snapshot = pb.StoreSnapshot.FromString(data)
        for table in self._tables.all_tables():
            table.clear()
        for wrapped in snapshot.objects:
            value = unwrap(wrapped)
            self._tables.table_for(value).put(value)
        self._operations = {o.operation_id: o.index for o in snapshot.operations}
        self.applied_index = index
        self._hub.overflow_all()


def unwrap(wrapped: pb.StoreObject) -> StoredObject:
    field = wrapped.WhichOneof("object")
    if field is None:
        raise ValueError("store object without content: written by a newer version?")
    value: StoredObject = getattr(wrapped, field)
    return value


def wrap(value: StoredObject) -> pb.StoreObject:
    wrapped = pb.StoreObject()
    getattr(wrapped, _FIELD_OF[type(value)]).CopyFrom(value)
    return wrapped


def kind_of(value: StoredObject) -> str:
    """ "service", "task", ...: the word used in watches and events."""
    return _FIELD_OF[type(value)]


def _unwrap(kind: type[T], wrapped: pb.StoreObject) -> T:
    value: T = getattr(wrapped, _FIELD_OF[kind])
    return value
