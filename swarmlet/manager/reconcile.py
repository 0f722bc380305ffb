"""The one loop that runs every controller.

A controller is a pure planner: state and a key in, changes out. The loop knows which
keys a change may affect, waits a little so that a burst is planned once, plans,
commits, and looks again when the planner asked for it. On leadership it plans every
key once. A plan that lost a race is made again from newer state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import structlog

from swarmlet.api.errors import SwarmletError
from swarmlet.store.store import Store, Transaction
from swarmlet.store.tables import Tables
from swarmlet.store.watch import Change, WatchOverflow

DEBOUNCE_SECONDS = 0.010
"""How long changes are collected before a plan; short, because commits are grouped anyway."""
RETRY_SECONDS = 0.5
KEYS_PER_ROUND_MAX = 200
PLANNING_SECONDS_MAX = 0.010
"""How long a round plans before others get their turn."""

Key = Hashable
Edit = Callable[[Transaction], None]
"""One unit of change: checks again what it relies on and is never split."""

log = structlog.get_logger(__name__)


@dataclass
class Plan:
    edits: list[Edit] = field(default_factory=list)
    look_again: datetime | None = None
    """When time alone will change the plan (a delay that ends)."""


class Controller(Protocol):
    name: str

    def keys(self, change: Change) -> Iterable[Key]:
        """The keys whose plan this change may affect. Cost must follow the change, not the cluster."""

    def all_keys(self, view: Tables) -> Iterable[Key]:
        """Every key there is; planned once when this manager begins to lead."""

    def plan(self, view: Tables, key: Key, now: datetime) -> Plan:
        """What to change for `key`. No I/O, no clock, no randomness."""


class ReconcileLoop:
    """Runs one controller while this manager leads."""

    def __init__(self, store: Store, controller: Controller, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._controller = controller
        self._now = now
        self._queue: dict[Key, None] = {}
        # On the loop's clock: the wall clock may be set while a key waits.
        self._timers: dict[Key, float] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Works until cancelled. What the store refuses, and a defect in a planner, is logged and retried."""
        while True:
            with self._store.watching() as watcher:
                self._add(self._controller.all_keys(self._store.view))
                planning = asyncio.create_task(self._plan_forever())
                try:
                    while True:
                        self._add_affected(await watcher.next())
                except WatchOverflow:
                    log.info("planning everything again", controller=self._controller.name)
                finally:
                    planning.cancel()
                    await asyncio.gather(planning, return_exceptions=True)

    def _add_affected(self, changes: list[Change]) -> None:
        try:
            for change in changes:
                self._add(self._controller.keys(change))
        except Exception:
            # Nobody knows what the rest of these changes affects.
            log.exception("planning everything again", controller=self._controller.name)
            self._add(self._controller.all_keys(self._store.view))

    def _add(self, keys: Iterable[Key]) -> None:
        self._queue.update(dict.fromkeys(keys))
        if self._queue:
            self._wake.set()

    async def _plan_forever(self) -> None:
        while True:
            await self._wait_for_work()
            keys = list(self._queue)[:KEYS_PER_ROUND_MAX]
            for key in keys:
                del self._queue[key]
            try:
                await self._plan_round(keys)
            except SwarmletError as error:
                log.warning("plan not committed", controller=self._controller.name, error=str(error))
                self._retry_later(keys)
            except Exception:
                log.exception("plan not committed", controller=self._controller.name)
                self._retry_later(keys)

    async def _plan_round(self, keys: list[Key]) -> None:
        edits: list[Edit] = []
        pause_at = asyncio.get_running_loop().time() + PLANNING_SECONDS_MAX
        for key in keys:
            edits.extend(self._plan_key(key))
            if asyncio.get_running_loop().time() > pause_at:
                # Heartbeats and elections run on the same loop.
                await asyncio.sleep(0)
                pause_at = asyncio.get_running_loop().time() + PLANNING_SECONDS_MAX
        if edits and await self._store.batch(edits) == 0:
            # Everything was out of date: somebody else was faster.
            self._retry_later(keys)

    def _plan_key(self, key: Key) -> list[Edit]:
        """The edits for one key; a defect that one key meets does not hold up the others."""
        self._timers.pop(key, None)
        now = self._now()
        try:
            plan = self._controller.plan(self._store.view, key, now)
        except Exception:
            log.exception("planner failed", controller=self._controller.name, key=str(key))
            self._retry_later([key])
            return []
        if plan.look_again is not None:
            wait_seconds = (plan.look_again - now).total_seconds()
            self._timers[key] = asyncio.get_running_loop().time() + wait_seconds
        return plan.edits

    def _retry_later(self, keys: list[Key]) -> None:
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self._add, keys)

    async def _wait_for_work(self) -> None:
        while not self._queue:
            self._wake.clear()
            due = min(self._timers.values(), default=None)
            try:
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            except TimeoutError:
                now = asyncio.get_running_loop().time()
                self._add([key for key, at in self._timers.items() if at <= now])
                for key in self._queue:
                    self._timers.pop(key, None)
        await asyncio.sleep(DEBOUNCE_SECONDS)
        self._wake.clear()
