"""An event loop whose time jumps to the next timer: hours of a cluster's life in seconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from swarmlet.raft import engine

R = TypeVar("R")

STEP_SECONDS = 1e-6


class NothingLeft(Exception):
    """Every task waits for something that nobody will do."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """No real time passes in it. Only for programs without sockets, threads and processes."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_JumpingSelector(self._advance))

    def time(self) -> float:
        return self._now

    def _advance(self, seconds: float | None) -> None:
        if seconds is None:
            raise NothingLeft
        # Time passes while code runs: loops that end by the clock must end.
        self._now += seconds + STEP_SECONDS


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, advance: Callable[[float | None], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        self._advance(0.0 if ready else timeout)
        return ready


def run_virtually(main: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """Runs `main` on a loop of its own, with every raft engine of the process on its clock."""
    loop = VirtualLoop()
    before = engine.engine_clock()
    engine.use_clock(loop.time)
    try:
        return loop.run_until_complete(main())
    finally:
        engine.use_clock(before)
        _cancel_all(loop)
        loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
