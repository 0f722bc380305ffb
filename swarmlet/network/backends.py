"""The backends of one published port and the connections they hold.

Chooses round robin among the active ones. No health checks: whoever fails to answer
a connection is merely tried last for a moment, the table says who is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol

from swarmlet.network.endpoints import Backend, Route

PENALTY_SECONDS = 3.0
"""How long a backend that could not be connected is tried last."""
DRAIN_SECONDS = 1.5
"""How long `drain_deadlines` waits for the connections of a backend that left."""


class Held(Protocol):
    """A connection that goes, or is about to go, to a backend."""

    def backend_gone(self) -> None:
        """The backend is not even draining any more: its task has ended or its node is down."""


class BackendPool:
    def __init__(self, released: Callable[[], None]) -> None:
        """`released` is called when a backend that takes no new connections has lost one of its old."""
        self._released = released
        self._route = Route()
        self._turn = 0
        self._penalised_until: dict[Backend, float] = {}
        self._held: dict[Backend, set[Held]] = {}
        self._drain_deadlines: dict[Backend, float] = {}
        self._changed = asyncio.Event()

    def update(self, route: Route) -> None:
        self._route = route
        active = set(route.active)
        self._penalised_until = {b: at for b, at in self._penalised_until.items() if b in active}
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        for backend in list(self._held):
            if backend in active:
                self._drain_deadlines.pop(backend, None)
                continue
            self._drain_deadlines.setdefault(backend, deadline)
            if backend not in route.draining:
                for held in list(self._held.get(backend, ())):
                    held.backend_gone()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def retire(self) -> None:
        """The port itself is gone: no new connections, and those that are held may end in peace."""
        self.update(Route(draining=self._route.draining.union(self._route.active)))

    def acquire(self, held: Held, tried: Collection[Backend]) -> Backend | None:
        """The next backend for a connection, which counts as held from now on; None when all were tried."""
        count = len(self._route.active)
        now = asyncio.get_running_loop().time()
        last_resort = None
        for offset in range(count):
            backend = self._route.active[(self._turn + offset) % count]
            if backend in tried:
                continue
            if self._penalised_until.get(backend, 0.0) > now:
                last_resort = last_resort or backend
                continue
            self._turn = (self._turn + offset + 1) % count
            return self._hold(held, backend)
        return None if last_resort is None else self._hold(held, last_resort)

    def release(self, held: Held, backend: Backend) -> None:
        holders = self._held.get(backend)
        if holders is None:
            return
        holders.discard(held)
        if not holders:
            del self._held[backend]
            if self._drain_deadlines.pop(backend, None) is not None:
                self._released()

    def penalise(self, backend: Backend) -> None:
        self._penalised_until[backend] = asyncio.get_running_loop().time() + PENALTY_SECONDS

    def is_active(self, backend: Backend) -> bool:
        return backend in self._route.active

    def drain_deadlines(self) -> Collection[float]:
        """Until when to wait for each backend that left but still holds connections (loop time)."""
        return self._drain_deadlines.values()

    async def changed(self) -> None:
        """Returns after the next update."""
        await self._changed.wait()

    def _hold(self, held: Held, backend: Backend) -> Backend:
        self._held.setdefault(backend, set()).add(held)
        return backend
