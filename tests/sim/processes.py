"""Processes of a simulated cluster: each has an event loop of its own inside the virtual one.

A process can be killed (nothing of it runs any more, no `finally` either), stopped and
continued as by SIGSTOP and SIGCONT, and slowed down as on a busy machine, while the
program in it is the real one. All share the virtual clock. Objects of asyncio belong to
the process in which they are first awaited; processes reach each other by `post` alone.
"""

from __future__ import annotations

import asyncio
import random
import sys
from asyncio import events
from collections.abc import Callable, Coroutine
from typing import Any

THREAD_SECONDS_MAX = 0.02
CLEANUP_ROUNDS_MAX = 200


class _Nothing:
    """A selector without files."""

    def select(self, timeout: float | None) -> list[Any]:
        return []


class ProcessLoop(asyncio.BaseEventLoop):
    """Runs when the world's loop calls it, and asks to be called when it has something to run."""

    def __init__(self, world: asyncio.AbstractEventLoop, rng: random.Random) -> None:
        super().__init__()
        self._selector = _Nothing()
        self._world = world
        self._rng = rng
        self._call: asyncio.TimerHandle | None = None
        self._is_stepping = False
        self.frozen = False
        self.slow_seconds = 0.0
        """How long the process waits at most each time for its turn on the processor."""

    def time(self) -> float:
        return self._world.time()

    def call_soon(self, *args: Any, **kwargs: Any) -> asyncio.Handle:  # type: ignore[override]
        handle = super().call_soon(*args, **kwargs)
        self._ask()
        return handle

    def call_at(self, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        handle = super().call_at(*args, **kwargs)
        self._ask()
        return handle

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """What runs in a thread takes a moment and is done at its end."""
        future: asyncio.Future[Any] = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:
                future.set_exception(error)

        self.call_later(self._rng.uniform(0, THREAD_SECONDS_MAX), work)
        return future

    def resume(self) -> None:
        self.frozen = False
        self._ask()

    def _ask(self) -> None:
        if self._is_stepping or self.frozen:
            return
        at = self._next_turn()
        if at is None or (self._call is not None and self._call.when() <= at):
            return
        if self._call is not None:
            self._call.cancel()
        self._call = self._world.call_at(at, self.step)

    def _next_turn(self) -> float | None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        if ready:
            return self.time() + (self._rng.uniform(0, self.slow_seconds) if self.slow_seconds else 0.0)
        return max(self.time(), scheduled[0].when()) if scheduled else None

    def step(self) -> None:
        """One round of this loop."""
        self._call = None
        if self.frozen:
            return
        world, hooks = events._get_running_loop(), sys.get_asyncgen_hooks()
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(
            firstiter=self._asyncgen_firstiter_hook,  # type: ignore[attr-defined]
            finalizer=self._asyncgen_finalizer_hook,  # type: ignore[attr-defined]
        )
        self._is_stepping = True
        try:
            self._run_once()  # type: ignore[attr-defined]
        finally:
            self._is_stepping = False
            events._set_running_loop(world)
            sys.set_asyncgen_hooks(*hooks)
        self._ask()

    def dispose(self) -> None:
        """Ends what is left in it, when nothing of that can do anything any more."""
        self.frozen = False
        for _ in range(CLEANUP_ROUNDS_MAX):
            tasks = asyncio.all_tasks(self)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self.step()
        self.frozen = True
        self.close()

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        self._ask()


class Process:
    """One run of a program on a host."""

    def __init__(
        self, host: str, *, rng: random.Random, failed: Callable[[str, BaseException], None] | None = None
    ) -> None:
        """`failed` hears of exceptions that nobody in the process has handled. Needs the world's loop."""
        self.host = host
        self.alive = True
        self._world = asyncio.get_running_loop()
        self._failed = failed
        self.loop = ProcessLoop(self._world, rng)
        self.loop.set_exception_handler(self._unhandled)
        # asyncio itself holds tasks weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    def post(self, call: Callable[..., object], *args: object) -> None:
        """Calls in the process, as soon as it gets its turn; never when it is dead."""
        if self.alive:
            self.loop.call_soon(call, *args)

    def spawn(self, main: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Runs a coroutine in the process; what it raises is a failure."""

        def begin() -> None:
            task = self.loop.create_task(main(), name=f"{self.host} {name}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

        self.post(begin)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._tell(task.get_name(), task.exception())

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._tell(str(context.get("message")), context.get("exception"))

    def _tell(self, what: str, error: BaseException | None) -> None:
        if self._failed is not None and self.alive:
            self._failed(what, error if error is not None else RuntimeError(what))

    # ---- faults

    def kill(self) -> None:
        self.alive = False
        self.loop.frozen = True

    def pause(self) -> None:
        self.loop.frozen = True

    def resume(self) -> None:
        if self.alive:
            self.loop.resume()

    @property
    def is_paused(self) -> bool:
        return self.alive and self.loop.frozen

    def slow_down(self, seconds: float) -> None:
        """Waits up to so long for each turn; 0 ends it."""
        self.loop.slow_seconds = seconds

    def dispose(self) -> None:
        self.alive = False
        self.loop.dispose()
