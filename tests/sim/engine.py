"""What runs tasks on a simulated host, and what leads connections to them.

The engine outlives the daemon, as a real one does, so its tasks are on the world's
loop and not on a process's. Images say how a task behaves: "ok", "slow", "stubborn",
"crash", "flaky", "badstart", "reject" and "hang", each with any tag.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from swarmlet.api import pb
from swarmlet.network.backends import DRAIN_SECONDS
from swarmlet.runtime.base import TaskResources
from swarmlet.runtime.simulated import Behaviour, SimulatedController, SimulatedRuntime, _SimulatedTask

GOOD_IMAGES = ("ok", "slow", "stubborn", "flaky")
BAD_IMAGES = ("crash", "badstart", "reject", "hang")
HANG_SECONDS = 3600.0


class Signal:
    """An event that tasks of any process may wait for."""

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[asyncio.Future[None]] = []

    def set(self) -> None:
        self._set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def is_set(self) -> bool:
        return self._set

    async def wait(self) -> bool:
        if not self._set:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return True


class EngineObserver(Protocol):
    """Hears what happens in engines, at that moment."""

    def task_started(self, host: str, task_id: str) -> None: ...

    def task_stopping(self, host: str, task_id: str) -> None: ...


@dataclass
class _EngineTask(_SimulatedTask):
    ended: Signal = field(default_factory=Signal)  # type: ignore[assignment]
    loop: asyncio.AbstractEventLoop | None = None
    started: Callable[[], None] = lambda: None

    def start(self) -> None:
        self.running = True
        self.started()
        if self.behaviour.run_seconds is not None and self.loop is not None:
            self.timer = self.loop.call_later(self.behaviour.run_seconds, self.end, self.behaviour.exit_code)


class Engine(SimulatedRuntime):
    """The engine of one host. Made on the world's loop."""

    def __init__(self, host: str, *, is_peaceful: Callable[[], bool], observer: EngineObserver) -> None:
        super().__init__(host, behaviour=self._behaviour_of)
        self.host = host
        self.loop = asyncio.get_running_loop()
        self._is_peaceful = is_peaceful
        self._observer = observer
        self.known: dict[str, pb.Task] = {}
        """Every task that was ever made here."""

    def controller(
        self, task: pb.Task, resources: TaskResources, progress: Callable[[str], None]
    ) -> SimulatedController:
        return _Controller(self, task)

    def create(self, task: pb.Task, behaviour: Behaviour) -> _SimulatedTask:
        if task.id not in self._tasks:
            self._last_pid += 1
            started = functools.partial(self._observer.task_started, self.host, task.id)
            self._tasks[task.id] = _EngineTask(self._last_pid, behaviour, loop=self.loop, started=started)
            self.known[task.id] = task
        return self._tasks[task.id]

    def task_ids(self) -> list[str]:
        """Everything that this engine has something of, running or not."""
        return list(self._tasks)

    def stopping(self, task_id: str) -> None:
        self._observer.task_stopping(self.host, task_id)

    def _behaviour_of(self, task: pb.Task) -> Behaviour:
        kind = task.spec.container_spec.image.partition(":")[0]
        rng = random.Random(task.id)
        match kind:
            case "slow":
                return Behaviour(prepare_seconds=rng.uniform(0, 3), start_seconds=rng.uniform(0, 3))
            case "stubborn":
                return Behaviour(stop_seconds=rng.choice([0.5, 3.0, 30.0]))
            case "crash":
                return Behaviour(run_seconds=rng.uniform(0, 2), exit_code=1)
            case "badstart":
                return Behaviour(start_seconds=rng.uniform(0, 1), fail_start="cannot start")
            case "reject":
                return Behaviour(reject="no such image")
            case "hang":
                return Behaviour(start_seconds=HANG_SECONDS)
            case "flaky" if not self._is_peaceful():
                return rng.choice(
                    [
                        Behaviour(),
                        Behaviour(run_seconds=rng.uniform(0, 8), exit_code=rng.choice([0, 1])),
                        Behaviour(fail_start="no luck"),
                        Behaviour(reject="no luck"),
                    ]
                )
        return Behaviour(stop_seconds=rng.choice([0.0, 0.1]))


class _Controller(SimulatedController):
    def __init__(self, engine: Engine, task: pb.Task) -> None:
        super().__init__(engine, task)
        self._engine = engine

    async def shutdown(self) -> None:
        task = self._engine.task(self._spec.id)
        if task is not None and task.running:
            self._engine.stopping(self._spec.id)
        await super().shutdown()


class RecordingProxy:
    """`ServiceProxy` that knows to which tasks connections go, and where some are still held."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.active: frozenset[str] = frozenset()
        """The tasks that new connections go to."""
        self._held_until: dict[str, float] = {}

    def leads_to(self, task_id: str, at: float) -> bool:
        return task_id in self.active or self._held_until.get(task_id, 0.0) > at

    async def apply(self, services: Sequence[pb.ServiceEndpoints]) -> None:
        loop = asyncio.get_running_loop()
        active = frozenset(
            endpoint.task_id
            for service in services
            for endpoint in service.endpoints
            if endpoint.state == pb.ENDPOINT_STATE_ACTIVE
        )
        for task_id in sorted(self.active - active):
            held_seconds = self._rng.choice([0.0, 0.0, 0.05, DRAIN_SECONDS])
            self._held_until[task_id] = loop.time() + self._rng.uniform(0, held_seconds)
        self.active = active
        while True:
            now = loop.time()
            self._held_until = {i: at for i, at in self._held_until.items() if at > now}
            if not self._held_until:
                return
            await asyncio.sleep(max(self._held_until.values()) - now)

    async def expose(
        self, task_id: str, addresses: Sequence[pb.EndpointAddress]
    ) -> Sequence[pb.EndpointAddress]:
        return addresses

    async def withdraw(self, task_id: str) -> None:
        return

    def errors(self) -> Sequence[str]:
        return []

    async def close(self) -> None:
        return
