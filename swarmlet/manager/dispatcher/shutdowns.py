"""A task leaves the balancers before it is told to stop (DESIGN.md, section 7).

The dispatcher holds a task's shutdown back here when the task leaves the endpoint
table while it still runs; the gate gives it free once every node that is READY has
confirmed a table without it, or when the wait is over. A node that hangs, or one
that reconnects after a change of leader, is thereby waited for, but never for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Held:
    revision: int
    timer: asyncio.TimerHandle


class ShutdownGate:
    """Which tasks must not yet learn that they are to stop."""

    def __init__(
        self,
        *,
        wait_seconds: float,
        confirmed_revision: Callable[[], float],
        release: Callable[[str], None],
    ) -> None:
        """`confirmed_revision` is the newest revision that every READY node has confirmed."""
        self._wait_seconds = wait_seconds
        self._confirmed_revision = confirmed_revision
        self._release = release
        self._held: dict[str, _Held] = {}

    def holds(self, task_id: str) -> bool:
        return task_id in self._held

    def hold(self, task_id: str, revision: int) -> None:
        """Holds the shutdown of `task_id` until `revision` is confirmed. Needs a running loop."""
        self.drop(task_id)
        timer = asyncio.get_running_loop().call_later(self._wait_seconds, self._free, task_id)
        self._held[task_id] = _Held(revision, timer)

    def check(self) -> None:
        """Gives free what is confirmed by now."""
        if not self._held:
            return
        confirmed = self._confirmed_revision()
        for task_id in [i for i, held in self._held.items() if held.revision <= confirmed]:
            self._free(task_id)

    def drop(self, task_id: str) -> None:
        held = self._held.pop(task_id, None)
        if held is not None:
            held.timer.cancel()

    def clear(self) -> None:
        for task_id in list(self._held):
            self.drop(task_id)

    def _free(self, task_id: str) -> None:
        self.drop(task_id)
        self._release(task_id)
