"""Who waits for something that a round of this manager brings about.

Used by `node` only, on its loop. Nobody is forgotten: `stop` answers all who are left.
"""

from __future__ import annotations

import asyncio

from swarmlet.api.errors import NotLeader, SwarmletError, Unavailable
from swarmlet.raft.core import Core
from swarmlet.raft.engine import LEADER


class Waiters:
    """Changes of the leadership, applied entries, linearizable reads and rounds."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._changes = 0
        self._last_leadership: object = None
        self._for_change: list[asyncio.Future[None]] = []
        self._for_applied: list[tuple[int, asyncio.Future[None]]] = []
        self._for_read: list[tuple[int, int, asyncio.Future[None]]] = []
        self._for_round: list[asyncio.Future[None]] = []
        self._stopped: SwarmletError | None = None

    async def leadership(self, seen: int) -> int:
        while self._changes <= seen:
            waiter = _future()
            self._for_change.append(waiter)
            await waiter
        return self._changes

    async def applied(self, index: int) -> None:
        """Raises Unavailable when this manager stops before."""
        if self._core.applied_index >= index:
            return
        if self._stopped is not None:
            raise self._stopped
        waiter = _future()
        self._for_applied.append((index, waiter))
        await waiter

    async def read(self) -> None:
        """Raises NotLeader or Unavailable; the caller limits the time."""
        round_, index = self._core.begin_read()
        waiter = _future()
        self._for_read.append((round_, index, waiter))
        await waiter

    async def next_round(self) -> None:
        waiter = _future()
        self._for_round.append(waiter)
        await waiter

    # ---- told by the driver

    def round_done(self, leadership: object, not_leader: NotLeader) -> None:
        """Answers everybody whose moment has come. `not_leader` is for reads when that is so."""
        self._finish_reads(not_leader)
        applied = self._core.applied_index
        if self._for_applied:
            for index, waiter in self._for_applied:
                if index <= applied:
                    _resolve(waiter)
            self._for_applied = [w for w in self._for_applied if not w[1].done()]
        self.leadership_is(leadership)
        for_round, self._for_round = self._for_round, []
        for waiter in for_round:
            _resolve(waiter)

    def leadership_is(self, leadership: object) -> None:
        if leadership != self._last_leadership:
            self._last_leadership = leadership
            self._changes += 1
            for_change, self._for_change = self._for_change, []
            for waiter in for_change:
                _resolve(waiter)

    def _finish_reads(self, not_leader: NotLeader) -> None:
        if not self._for_read:
            return
        leads = self._core.state == LEADER
        confirmed = self._core.confirmed_round() if leads else 0
        waiting = []
        for round_, index, waiter in self._for_read:
            if waiter.done():
                continue
            if not leads:
                waiter.set_exception(not_leader)
            elif round_ <= confirmed and index <= self._core.applied_index:
                waiter.set_result(None)
            else:
                waiting.append((round_, index, waiter))
        self._for_read = waiting

    def stop(self) -> None:
        self._stopped = Unavailable("this manager is stopping")
        left = [w for _, w in self._for_applied]
        left += [w for _, _, w in self._for_read]
        left += self._for_round
        for waiter in left:
            if not waiter.done():
                waiter.set_exception(self._stopped)
        self._for_applied, self._for_read, self._for_round = [], [], []


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
