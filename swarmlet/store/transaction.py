"""A transaction while it is being made: what was read, and the changes so far.

`Store.update` and `Store.batch` make one per attempt and hand it to the caller's
function; nothing here commits, waits or changes the tables.
"""

from __future__ import annotations

from collections.abc import Callable

from swarmlet.api import pb
from swarmlet.api.errors import AlreadyExists, Conflict, NotFound
from swarmlet.store.objects import FIELD_OF, kind_of, unwrap_as
from swarmlet.store.tables import StoredObject, T, Tables

CHANGES_MAX = 200
"""Changes in one transaction (SwarmKit's MaxChangesPerTransaction)."""
TRANSACTION_BYTES_MAX = 1_500_000
"""Size of one encoded transaction (SwarmKit's MaxTransactionBytes)."""

_Key = tuple[type[StoredObject], str]
Unit = Callable[["Transaction"], None]
"""One part of a batch, committed whole or not at all."""


class Transaction:
    """Reads the state and collects changes. Made by `Store.update`, never kept.

    `view` is the state before this transaction; `get` sees its own changes too.
    """

    def __init__(self, tables: Tables, ids: Callable[[], str]) -> None:
        self.view = tables
        self._ids = ids
        self._changes: dict[_Key, pb.StoreChange] = {}
        self._sizes: dict[_Key, int] = {}
        self.size_bytes = 0
        # What the running unit of a batch replaced, to put it back.
        self._undo: list[tuple[_Key, pb.StoreChange | None]] = []

    def new_id(self) -> str:
        return self._ids()

    def get(self, kind: type[T], object_id: str) -> T | None:
        """The object as this transaction leaves it so far."""
        change = self._changes.get((kind, object_id))
        if change is not None:
            return None if change.kind == pb.CHANGE_KIND_DELETE else unwrap_as(kind, change.object)
        return self.view.table_of(kind).get(object_id)

    def create(self, value: T) -> None:
        """Adds an object; its id must be set and new. Raises AlreadyExists for a taken name or id."""
        if not value.id:
            raise ValueError(f"a {kind_of(value)} without an id")
        if self.get(type(value), value.id) is not None:
            raise AlreadyExists(f"{kind_of(value)} {value.id} already exists")
        self._check_name(value)
        deleted = self._changes.get((type(value), value.id))
        if deleted is None:
            self._record(pb.CHANGE_KIND_CREATE, value, expected_version=0)
        else:
            # Deleted and made again within one transaction: replaced.
            self._record(pb.CHANGE_KIND_UPDATE, value, expected_version=deleted.expected_version)

    def update(self, value: T) -> None:
        """Replaces an object; `value.version` must be the one that was read.

        Raises NotFound, Conflict when it changed since, AlreadyExists for a taken name.
        """
        current = self.get(type(value), value.id)
        if current is None:
            raise NotFound(f"{kind_of(value)} {value.id} not found")
        if current.version.index != value.version.index:
            raise Conflict("update out of sequence")
        self._check_name(value)
        pending = self._changes.get((type(value), value.id))
        if pending is None:
            self._record(pb.CHANGE_KIND_UPDATE, value, expected_version=value.version.index)
        else:
            self._record(pending.kind, value, expected_version=pending.expected_version)

    def delete(self, kind: type[T], object_id: str) -> None:
        """Removes an object as it is now. Raises NotFound."""
        current = self.get(kind, object_id)
        if current is None:
            raise NotFound(f"{FIELD_OF[kind]} {object_id} not found")
        pending = self._changes.get((kind, object_id))
        if pending is not None and pending.kind == pb.CHANGE_KIND_CREATE:
            self._set((kind, object_id), None)
            return
        expected_version = current.version.index if pending is None else pending.expected_version
        self._record(pb.CHANGE_KIND_DELETE, kind(id=object_id), expected_version=expected_version)

    @property
    def changes(self) -> list[pb.StoreChange]:
        return list(self._changes.values())

    def try_unit(self, unit: Unit, *, is_first: bool) -> bool:
        """Runs a unit of a batch; False, with nothing changed, when it no longer fits this transaction."""
        self._undo.clear()
        try:
            unit(self)
        except (Conflict, NotFound, AlreadyExists):
            self._roll_back()
            return True
        fits = len(self._changes) <= CHANGES_MAX and self.size_bytes <= TRANSACTION_BYTES_MAX
        if not fits and not is_first:
            self._roll_back()
            return False
        return True

    def _roll_back(self) -> None:
        for key, change in reversed(list(self._undo)):
            self._set(key, change)

    def _check_name(self, value: T) -> None:
        """Raises AlreadyExists when, as this transaction leaves things, another object has the name."""
        kind = type(value)
        table = self.view.table_of(kind)
        name = table.unique_name(value)
        if not name:
            return
        holder = table.by_name(name)
        if holder is not None and holder.id != value.id and (kind, holder.id) not in self._changes:
            raise table.name_taken(name)
        for (other_kind, other_id), change in self._changes.items():
            if other_kind is not kind or other_id == value.id or change.kind == pb.CHANGE_KIND_DELETE:
                continue
            if table.unique_name(unwrap_as(kind, change.object)) == name:
                raise table.name_taken(name)

    def _record(self, kind: pb.ChangeKind.ValueType, value: StoredObject, expected_version: int) -> None:
        change = pb.StoreChange(kind=kind, expected_version=expected_version)
        getattr(change.object, kind_of(value)).CopyFrom(value)
        self._set((type(value), value.id), change)

    def _set(self, key: _Key, change: pb.StoreChange | None) -> None:
        self._undo.append((key, self._changes.get(key)))
        self.size_bytes -= self._sizes.pop(key, 0)
        if change is None:
            self._changes.pop(key, None)
        else:
            self._changes[key] = change
            self._sizes[key] = change.ByteSize()
            self.size_bytes += self._sizes[key]
