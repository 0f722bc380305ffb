"""Telling readers what changed, in commit order and without a gap.

A watcher that falls behind its bound is not starved and does not hold anybody up:
its next read raises WatchOverflow, and it has to read the view again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from swarmlet.api import pb
from swarmlet.store.tables import StoredObject

QUEUE_CHANGES_MAX = 10_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """One object's change. `old` is None for a create, `new` for a delete."""

    kind: pb.ChangeKind.ValueType
    index: int
    old: StoredObject | None
    new: StoredObject | None

    @property
    def current(self) -> StoredObject:
        """The object as it is, or as it last was."""
        value = self.new if self.new is not None else self.old
        if value is None:
            raise ValueError("a change of nothing")
        return value


ChangeFilter = Callable[[Change], bool]


class WatchOverflow(Exception):
    """Changes were dropped: read the view again."""


class Watcher:
    """One reader's queue; made by `Store.watching`, read by one task."""

    def __init__(self, wanted: ChangeFilter | None) -> None:
        self._wanted = wanted
        self._pending: list[Change] = []
        self._overflowed = False
        self._ready = asyncio.Event()

    async def next(self) -> list[Change]:
        """All changes since the last call, at least one. Raises WatchOverflow once after a loss."""
        await self._ready.wait()
        self._ready.clear()
        if self._overflowed:
            self._overflowed = False
            self._pending.clear()
            raise WatchOverflow
        changes, self._pending = self._pending, []
        return changes

    def offer(self, changes: Iterable[Change]) -> None:
        """Queues what is wanted. Never waits and never raises."""
        if self._overflowed:
            return
        try:
            self._pending.extend(c for c in changes if self._wanted is None or self._wanted(c))
        except Exception:
            # A defect of one reader must not stop the state machine that calls here.
            log.exception("filter of a watcher failed")
            self.overflow()
            return
        if len(self._pending) > QUEUE_CHANGES_MAX:
            self.overflow()
        elif self._pending:
            self._ready.set()

    def overflow(self) -> None:
        """Forgets what is queued; nothing more is queued until the reader was told."""
        self._overflowed = True
        self._pending.clear()
        self._ready.set()


class WatchHub:
    """Who is told; the store's, one per manager."""

    def __init__(self) -> None:
        self._watchers: dict[Watcher, None] = {}

    def subscribe(self, wanted: ChangeFilter | None) -> Watcher:
        watcher = Watcher(wanted)
        self._watchers[watcher] = None
        return watcher

    def unsubscribe(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)

    def publish(self, changes: list[Change]) -> None:
        for watcher in self._watchers:
            watcher.offer(changes)

    def overflow_all(self) -> None:
        for watcher in self._watchers:
            watcher.overflow()
