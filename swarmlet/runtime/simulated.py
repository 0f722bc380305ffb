"""A runtime without processes: tasks are timers that behave as a test says.

Called by simulations and tests of thousands of nodes. What "runs" is kept in the
runtime, not in the controllers, so a second agent on the same runtime adopts it as
it would adopt containers. Never looks at a clock: time passes by `asyncio.sleep`
and loop timers only, so it works on a virtual-time loop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from swarmlet import __version__
from swarmlet.api import pb
from swarmlet.runtime.base import LogRecord, TaskFailed, TaskRejected, TaskResources
from swarmlet.runtime.ending import raise_for_exit

_KILLED_EXIT_CODE = 137


@dataclass(frozen=True)
class Behaviour:
    """What a simulated task does. The default prepares at once, starts and runs for ever."""

    reject: str = ""
    """Not empty: `prepare` raises TaskRejected with this text."""
    prepare_seconds: float = 0.0
    fail_start: str = ""
    """Not empty: `start` raises TaskFailed with this text, after `start_seconds`."""
    start_seconds: float | None = None
    """None: the runtime's own."""
    run_seconds: float | None = None
    """How long it runs before it ends by itself with `exit_code`; None: for ever."""
    exit_code: int = 0
    stop_seconds: float = 0.0
    """From the stop signal to the end; a longer one than the grace period is killed then."""
    log_lines: tuple[str, ...] = ()
    """Written to stdout when the task starts."""


@dataclass
class _SimulatedTask:
    pid: int
    behaviour: Behaviour
    running: bool = False
    exit_code: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.running = True
        if self.behaviour.run_seconds is not None:
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(self.behaviour.run_seconds, self.end, self.behaviour.exit_code)

    def end(self, exit_code: int) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.exit_code is None:
            self.running = False
            self.exit_code = exit_code
            self.ended.set()


class SimulatedRuntime:
    """Implements `base.Runtime`. `behaviour` is asked once per task, when it is prepared."""

    name = "simulated"

    def __init__(
        self,
        hostname: str,
        *,
        cpus: int = 4,
        memory_bytes: int = 8 << 30,
        start_seconds: float = 0.01,
        behaviour: Callable[[pb.Task], Behaviour] | None = None,
    ) -> None:
        self.hostname = hostname
        self.cpus = cpus
        self.memory_bytes = memory_bytes
        self.start_seconds = start_seconds
        self.behaviour = behaviour or (lambda _task: Behaviour())
        self.starts: list[str] = []
        """Ids of the tasks in the order of their starts; one that is adopted is not started again."""
        self._tasks: dict[str, _SimulatedTask] = {}
        self._last_pid = 1000

    async def describe(self) -> pb.NodeDescription:
        return pb.NodeDescription(
            hostname=self.hostname,
            platform=pb.Platform(architecture="x86_64", os="linux"),
            resources=pb.Resources(nano_cpus=self.cpus * 10**9, memory_bytes=self.memory_bytes),
            engine=pb.EngineDescription(engine_version=__version__, runtime=self.name),
        )

    def controller(
        self, task: pb.Task, resources: TaskResources, progress: Callable[[str], None]
    ) -> SimulatedController:
        return SimulatedController(self, task)

    async def leftovers(self) -> Sequence[str]:
        return list(self._tasks)

    async def remove_leftover(self, task_id: str) -> None:
        self.forget(task_id)

    async def close(self) -> None:
        return

    def running_task_ids(self) -> list[str]:
        return [task_id for task_id, task in self._tasks.items() if task.running]

    def end_task(self, task_id: str, exit_code: int = _KILLED_EXIT_CODE) -> None:
        """As if the program had exited, or had been killed from outside."""
        self._tasks[task_id].end(exit_code)

    def lose_power(self) -> None:
        """Every task is gone without a trace, as after a reboot of the host."""
        for task_id in list(self._tasks):
            self.forget(task_id)

    def task(self, task_id: str) -> _SimulatedTask | None:
        return self._tasks.get(task_id)

    def create(self, task: pb.Task, behaviour: Behaviour) -> _SimulatedTask:
        self._last_pid += 1
        return self._tasks.setdefault(task.id, _SimulatedTask(self._last_pid, behaviour))

    def forget(self, task_id: str) -> None:
        task = self._tasks.pop(task_id, None)
        if task is not None:
            task.end(_KILLED_EXIT_CODE)

    def address_of(self, task_id: str) -> str:
        digest = hashlib.sha256(f"{self.hostname}/{task_id}".encode()).digest()
        return f"10.{digest[0]}.{digest[1]}.{digest[2]}"


class SimulatedController:
    """Implements `base.TaskController`."""

    def __init__(self, runtime: SimulatedRuntime, task: pb.Task) -> None:
        self._runtime = runtime
        self._spec = task

    async def prepare(self) -> None:
        if self._runtime.task(self._spec.id) is not None:
            return
        behaviour = self._runtime.behaviour(self._spec)
        if behaviour.prepare_seconds:
            await asyncio.sleep(behaviour.prepare_seconds)
        if behaviour.reject:
            raise TaskRejected(behaviour.reject)
        self._runtime.create(self._spec, behaviour)

    async def start(self) -> None:
        task = self._existing()
        if task.running:
            return
        if task.exit_code is None:
            seconds = task.behaviour.start_seconds
            await asyncio.sleep(self._runtime.start_seconds if seconds is None else seconds)
            task = self._existing()
        if task.behaviour.fail_start:
            raise TaskFailed(task.behaviour.fail_start)
        if task.running or task.exit_code is not None:
            return
        self._runtime.starts.append(self._spec.id)
        task.start()

    async def wait(self) -> None:
        task = self._existing()
        await task.ended.wait()
        raise_for_exit(task.exit_code)

    async def shutdown(self) -> None:
        task = self._runtime.task(self._spec.id)
        if task is None or task.exit_code is not None:
            return
        if not task.running:
            task.end(0)
            return
        spec = self._spec.spec.container_spec
        grace_seconds = spec.stop_grace_period_ns / 1e9 if spec.HasField("stop_grace_period_ns") else 10.0
        if task.behaviour.stop_seconds:
            await asyncio.sleep(min(task.behaviour.stop_seconds, grace_seconds))
        task.end(0 if task.behaviour.stop_seconds <= grace_seconds else _KILLED_EXIT_CODE)

    async def terminate(self) -> None:
        task = self._runtime.task(self._spec.id)
        if task is not None:
            task.end(_KILLED_EXIT_CODE)

    async def remove(self) -> None:
        self._runtime.forget(self._spec.id)

    def container_status(self) -> pb.ContainerStatus | None:
        task = self._runtime.task(self._spec.id)
        if task is None:
            return None
        return pb.ContainerStatus(
            container_id=self._spec.id,
            pid=task.pid if task.running else 0,
            exit_code=task.exit_code or 0,
        )

    def endpoint_addresses(self) -> Sequence[pb.EndpointAddress]:
        address = self._runtime.address_of(self._spec.id)
        return [
            pb.EndpointAddress(
                protocol=port.protocol, target_port=port.target_port, address=address, port=port.target_port
            )
            for port in self._spec.endpoint.ports
        ]

    def port_status(self) -> pb.PortStatus | None:
        host_ports = [p for p in self._spec.endpoint.ports if p.publish_mode == pb.PUBLISH_MODE_HOST]
        return pb.PortStatus(ports=host_ports) if host_ports else None

    async def logs(self, options: pb.LogOptions) -> AsyncIterator[LogRecord]:
        task = self._runtime.task(self._spec.id)
        if task is None or not (options.stdout or not options.stderr):
            return
        lines = task.behaviour.log_lines
        for line in lines if options.tail < 0 else lines[len(lines) - min(options.tail, len(lines)) :]:
            yield LogRecord(datetime.fromtimestamp(0, UTC), pb.LOG_STREAM_STDOUT, line.encode())
        if options.follow:
            await task.ended.wait()

    def _existing(self) -> _SimulatedTask:
        task = self._runtime.task(self._spec.id)
        if task is None:
            raise TaskFailed("No such container: " + self._spec.id)
        return task
