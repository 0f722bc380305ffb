"""The runtime of a machine without an engine: a task is a supervised group of real processes.

Called by the agent. What the image would have said is not used: the command of the
spec is run on the node's own file system. Tasks outlive the daemon; everything that is
to be known of them again is below one directory:

    tasks/ID/task.json            address, stop signal and grace period, and the boot of the machine
    tasks/ID/supervisor,program   see `supervisor`
    tasks/ID/exit                 exit code, once ended
    tasks/ID/healthy              present once the health check has passed
    tasks/ID/stdout.log,stderr.log
    tasks/ID/work/                where the program runs when the spec names no directory
    addresses/A.B.C.D             the id of the task that has this loopback address

It never uses namespaces, needs no root, and forwards no ports: it tells where each
target port of a task can be dialled.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import psutil

from swarmlet import __version__
from swarmlet.api import pb
from swarmlet.runtime import procfs, supervisor
from swarmlet.runtime.base import TaskFailed, TaskResources
from swarmlet.runtime.cgroups import ControlGroups
from swarmlet.runtime.loopback import DEFAULT_BASE, LoopbackAddresses
from swarmlet.runtime.process_config import (
    ProgramPlan,
    credentials_of,
    plan_program,
    stop_grace_seconds_of,
    stop_signal_of,
)
from swarmlet.runtime.process_logs import LogClock
from swarmlet.runtime.process_task import ProcessController
from swarmlet.runtime.supervisor import Program, SupervisedProgram
from swarmlet.runtime.task_files import TaskFiles

T = TypeVar("T")

_THREADS = 4
_LOG_NOTE_SECONDS = 1.0
_TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class TaskRecord:
    """What a later daemon must know of a task without having its spec."""

    boot_id: str
    address: str
    stop_signal: int
    stop_grace_seconds: float


class ProcessRuntime:
    """Implements `base.Runtime`. One per directory at a time; all methods on one event loop.

    `owner` (the node's id, or any name that is unique on the machine) keeps the memory
    files, control groups and addresses of several daemons apart. `address_base` is the
    loopback range out of which tasks get their addresses. `environment` is put into
    every task below what its spec sets.
    """

    name = "process"

    def __init__(
        self,
        directory: Path,
        *,
        owner: str,
        hostname: str,
        address_base: str = DEFAULT_BASE,
        now: Callable[[], datetime] = utc_now,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.hostname = hostname
        self.owner = owner
        self.now = now
        self.environment = dict(environment or {})
        self.executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="process-runtime")
        self._tasks_directory = directory / "tasks"
        self._addresses = LoopbackAddresses(directory / "addresses", owner, address_base)
        self._files = TaskFiles(owner)
        self._cgroups = ControlGroups(re.sub(r"[^A-Za-z0-9_-]", "-", owner))
        self._table = procfs.ProcessTable(self.executor)
        self._boot_id = procfs.boot_id()
        self._programs: dict[str, SupervisedProgram] = {}
        self._records: dict[str, TaskRecord] = {}
        self._clocks: dict[str, LogClock] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._noting_logs: asyncio.Task[None] | None = None

    async def describe(self) -> pb.NodeDescription:
        return pb.NodeDescription(
            hostname=self.hostname,
            platform=pb.Platform(architecture=platform.machine(), os=platform.system().lower()),
            resources=pb.Resources(
                nano_cpus=(psutil.cpu_count() or 1) * 10**9, memory_bytes=psutil.virtual_memory().total
            ),
            engine=pb.EngineDescription(engine_version=__version__, runtime=self.name),
        )

    def controller(
        self, task: pb.Task, resources: TaskResources, progress: Callable[[str], None]
    ) -> ProcessController:
        return ProcessController(self, task, resources)

    async def leftovers(self) -> Sequence[str]:
        def names() -> list[str]:
            directory = self._tasks_directory
            return sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []

        return await self.in_thread(names)

    async def remove_leftover(self, task_id: str) -> None:
        program = self.program(task_id)
        if program is not None:
            record = self.record(task_id)
            await program.stop(
                record.stop_signal if record else stop_signal_of(pb.ContainerSpec()),
                record.stop_grace_seconds if record else stop_grace_seconds_of(pb.ContainerSpec()),
            )
        await self.forget(task_id)

    async def close(self) -> None:
        for program in self._programs.values():
            program.unwatch()
        background = [*self._background, *([self._noting_logs] if self._noting_logs else [])]
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        self._programs.clear()
        self.executor.shutdown(wait=False)

    # What follows is for the controllers of this runtime.

    def directory_of(self, task_id: str) -> Path:
        if not _TASK_ID.fullmatch(task_id):
            raise ValueError(f"invalid task id {task_id!r}")
        return self._tasks_directory / task_id

    def record(self, task_id: str) -> TaskRecord | None:
        if task_id not in self._records:
            try:
                values = json.loads((self.directory_of(task_id) / "task.json").read_text())
                self._records[task_id] = TaskRecord(**values)
            except (FileNotFoundError, ValueError, TypeError):
                return None  # not prepared, or torn by a crash: it is prepared again
        return self._records[task_id]

    def program(self, task_id: str) -> SupervisedProgram | None:
        """The task's program, running or ended; adopted when a predecessor started it."""
        if task_id not in self._programs:
            record = self.record(task_id)
            if record is None:
                return None
            same_boot = record.boot_id == self._boot_id
            adopted = supervisor.adopt(self.directory_of(task_id), self._table, same_boot=same_boot)
            if adopted is None:
                return None
            self._programs[task_id] = adopted
            if self._noting_logs is None or self._noting_logs.done():
                self._noting_logs = asyncio.create_task(self._note_logs())
        return self._programs[task_id]

    def clock(self, task_id: str) -> LogClock:
        return self._clocks.setdefault(task_id, LogClock())

    def plan(self, task: pb.Task, resources: TaskResources) -> ProgramPlan:
        """Makes what the task needs and says what to run. Blocking; safe to repeat.

        Raises TaskRejected, TaskFailed and OSError.
        """
        spec = task.spec.container_spec
        directory = self.directory_of(task.id)
        credentials = credentials_of(spec.user, spec.groups)
        owner_ids = (credentials.uid, credentials.gid) if credentials else None
        scratch = directory / "work"
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        if owner_ids is not None:
            os.chown(scratch, *owner_ids)
        record = TaskRecord(
            boot_id=self._boot_id,
            address=self._addresses.claim(task.id),
            stop_signal=int(stop_signal_of(spec)),
            stop_grace_seconds=stop_grace_seconds_of(spec),
        )
        files = self._files.directory_of(task.id)
        if self.record(task.id) is None or files is None:
            self._files.create(task, resources, owner_ids=owner_ids, relative=True)
            files = self._files.directory_of(task.id)
        plan = plan_program(
            task,
            resources,
            address=record.address,
            scratch=scratch,
            files=files,
            cgroups=self._cgroups.create(task.id, task.spec.resources.limits),
            environment=self.environment,
        )
        (directory / "task.json.new").write_text(json.dumps(asdict(record)))
        (directory / "task.json.new").replace(directory / "task.json")
        self._records[task.id] = record
        return plan

    async def launch(self, task_id: str, program: Program) -> SupervisedProgram:
        """Starts the program once and for all. Raises TaskFailed."""
        try:
            await supervisor.launch(self.directory_of(task_id), program, self.executor)
        except OSError as error:
            raise TaskFailed(f"cannot start the task on node {self.hostname}: {error}") from error
        launched = self.program(task_id)
        if launched is None:
            raise TaskFailed(f"cannot start the task on node {self.hostname}: its supervisor did not begin")
        return launched

    async def forget(self, task_id: str) -> None:
        """Kills what runs of the task and removes every trace."""
        program = self._programs.get(task_id) or self.program(task_id)
        if program is not None:
            await program.kill()
            program.unwatch()

        def remove() -> None:
            record = self.record(task_id)
            shutil.rmtree(self.directory_of(task_id), ignore_errors=True)
            self._files.remove(task_id)
            self._cgroups.remove(task_id)
            if record is not None:
                self._addresses.release(record.address)
            else:
                self._addresses.release_task(task_id)

        await self.in_thread(remove)
        for known in (self._programs, self._records, self._clocks):
            known.pop(task_id, None)

    async def in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, function)

    def spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Runs beside the caller until it returns or the runtime is closed."""
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _note_logs(self) -> None:
        """Keeps the times and the size of the logs of what runs, once a second, while anything runs."""
        while running := [i for i, program in self._programs.items() if not program.ended.is_set()]:
            logs = [(self.clock(task_id), self.directory_of(task_id)) for task_id in running]
            now = self.now()

            def note(logs: list[tuple[LogClock, Path]] = logs, now: datetime = now) -> None:
                for clock, directory in logs:
                    clock.note(directory, now)

            await self.in_thread(note)
            await asyncio.sleep(_LOG_NOTE_SECONDS)
