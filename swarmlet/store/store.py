"""The store: a state machine for raft below, transactions and watches above.

One event loop, no locks. Between two awaits the tables do not change, so a reader
that does not await sees one consistent state.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import Protocol, TypeVar

from google.protobuf.message import DecodeError

from swarmlet.api import pb
from swarmlet.api.errors import AlreadyExists, Conflict, InvalidArgument, SwarmletError
from swarmlet.api.ids import new_id
from swarmlet.store.objects import detached, kind_of, unwrap, wrap
from swarmlet.store.tables import Tables
from swarmlet.store.transaction import CHANGES_MAX, TRANSACTION_BYTES_MAX, Transaction, Unit
from swarmlet.store.watch import Change, ChangeFilter, Watcher, WatchHub

__all__ = [
    "CHANGES_MAX",
    "OPERATIONS_REMEMBERED",
    "RETRIES_MAX",
    "TRANSACTION_BYTES_MAX",
    "Proposer",
    "Store",
    "Transaction",
    "Unit",
    "kind_of",
    "unwrap",
    "wrap",
]

R = TypeVar("R")

OPERATIONS_REMEMBERED = 10_000
"""How many operation ids are kept to recognise a repeated one."""
RETRIES_MAX = 50
"""How often a change that lost a race is made again; of those who race, one wins every time."""


class Proposer(Protocol):
    """What the store needs of agreement."""

    async def propose(self, data: bytes) -> object:
        """Returns what `apply` returned for this entry, once it is committed and applied here.

        Raises Unavailable or NotLeader (not done) or UnknownOutcome.
        """


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

    async def changes(self, wanted: ChangeFilter | None = None) -> AsyncGenerator[list[Change], None]:
        """`watching` as a plain iterator, from its first step on; close it (`contextlib.aclosing`).

        Raises WatchOverflow when the reader was too slow.
        """
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
        `operation_id` that was applied before, nothing more is written; `change` is run
        even then, so who repeats an operation asks `operation_index` first.

        Raises what the proposer raises, Conflict when others were faster every time,
        InvalidArgument when the change is larger than TRANSACTION_BYTES_MAX.
        """
        conflict: SwarmletError | None = None
        for _ in range(RETRIES_MAX):
            transaction = self._begin()
            result = change(transaction)
            if not transaction.changes:
                return result
            if transaction.size_bytes > TRANSACTION_BYTES_MAX:
                raise InvalidArgument(
                    f"too large: {transaction.size_bytes} bytes, at most {TRANSACTION_BYTES_MAX} are allowed"
                )
            try:
                await self._commit(transaction.changes, operation_id)
            except Conflict as error:
                conflict = error
                continue
            return result
        raise Conflict(f"gave up after {RETRIES_MAX} attempts: {conflict}")

    async def batch(self, units: Iterable[Unit]) -> int:
        """Commits many independent units in as few transactions as the limits allow.

        A unit is never split; one that is too large by itself goes alone. It may be run
        again, on newer state, so it checks what it relies on; one that raises Conflict,
        NotFound or AlreadyExists is left out. Returns the number of changes committed.

        Raises what the proposer raises, and Conflict when others were faster every time;
        the transactions before that are committed.
        """
        waiting = list(units)
        committed = 0
        start = 0
        while start < len(waiting):
            count, taken = await self._commit_group(waiting, start)
            committed += count
            start += taken
        return committed

    async def _commit_group(self, units: list[Unit], start: int) -> tuple[int, int]:
        """Commits as many units from `start` on as fit; returns (changes committed, units done with)."""
        for attempt in range(RETRIES_MAX):
            # A smaller group after each lost race: it touches less that others want.
            units_max = max(1, CHANGES_MAX >> attempt) if attempt else len(units)
            transaction = self._begin()
            taken = 0
            for unit in islice(units, start, start + units_max):
                if not transaction.try_unit(unit, is_first=not transaction.changes):
                    break
                taken += 1
            if not transaction.changes:
                return 0, taken
            try:
                await self._commit(transaction.changes, "")
            except (Conflict, AlreadyExists):
                continue
            return len(transaction.changes), taken
        raise Conflict(f"gave up after {RETRIES_MAX} attempts: update out of sequence")

    def _begin(self) -> Transaction:
        return Transaction(self._tables, lambda: new_id(self._rng))

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
        changed: set[tuple[str, str]] = set()
        for change in transaction.changes:
            value = unwrap(change.object)
            table = self._tables.table_for(value)
            if (table.kind, value.id) in changed:
                raise Conflict(f"{table.kind} {value.id} is changed twice in one transaction")
            changed.add((table.kind, value.id))
            current = table.get(value.id)
            if change.kind == pb.CHANGE_KIND_CREATE:
                if current is not None:
                    raise AlreadyExists(f"{table.kind} {value.id} already exists")
            elif current is None or current.version.index != change.expected_version:
                raise Conflict("update out of sequence")
        self._check_names(transaction, changed)

    def _check_names(self, transaction: pb.Transaction, changed: set[tuple[str, str]]) -> None:
        """Names are unique after the transaction; within it they may pass from one object to another."""
        given: set[tuple[str, str]] = set()
        for change in transaction.changes:
            value = unwrap(change.object)
            table = self._tables.table_for(value)
            name = table.unique_name(value)
            if change.kind == pb.CHANGE_KIND_DELETE or not name:
                continue
            holder = table.by_name(name)
            is_held = holder is not None and (table.kind, holder.id) not in changed
            if is_held or (table.kind, name) in given:
                raise table.name_taken(name)
            given.add((table.kind, name))

    def _apply_change(self, index: int, transaction: pb.Transaction, change: pb.StoreChange) -> Change:
        wrapped = unwrap(change.object)
        table = self._tables.table_for(wrapped)
        if change.kind == pb.CHANGE_KIND_DELETE:
            return Change(change.kind, index, old=table.remove(wrapped.id), new=None)
        value = detached(wrapped)
        old = table.get(value.id)
        value.version.index = index
        value.created_at.CopyFrom(transaction.time if old is None else old.created_at)
        value.updated_at.CopyFrom(transaction.time)
        table.put(value)
        return Change(change.kind, index, old=old, new=value)

    def _remember(self, operation_id: str, index: int) -> None:
        if not operation_id:
            return
        self._operations[operation_id] = index
        if len(self._operations) > OPERATIONS_REMEMBERED:
            del self._operations[next(iter(self._operations))]

    def snapshot(self) -> Callable[[], bytes]:
        """A consistent copy, cheap to take; the returned function encodes it and may run in a thread.

        The same log gives the same bytes on every manager.
        """
        objects = [value for table in self._tables.all_tables() for value in table]
        operations = list(self._operations.items())

        def encode() -> bytes:
            # Encoded piece by piece (protobuf joins repeated fields), because one call for
            # everything would hold the interpreter, and so the event loop, all the time.
            parts = [
                pb.StoreSnapshot(objects=[wrap(value)]).SerializeToString(deterministic=True)
                for value in objects
            ]
            parts.extend(
                pb.StoreSnapshot(
                    operations=[pb.AppliedOperation(operation_id=operation_id, index=index)]
                ).SerializeToString()
                for operation_id, index in operations
            )
            return b"".join(parts)

        return encode

    def restore(self, index: int, data: bytes) -> None:
        """Replaces everything by a snapshot; watchers are told to start over.

        Raises ValueError, with nothing changed, for what is not a snapshot of this version.
        """
        try:
            snapshot = pb.StoreSnapshot.FromString(data)
        except DecodeError as error:
            raise ValueError(f"not a snapshot of the store: {error}") from error
        values = [detached(unwrap(wrapped)) for wrapped in snapshot.objects]
        for table in self._tables.all_tables():
            table.clear()
        for value in values:
            self._tables.table_for(value).put(value)
        self._operations = {o.operation_id: o.index for o in snapshot.operations}
        self.applied_index = index
        self._hub.overflow_all()
