"""One task of the process runtime, as the agent drives it.

Made by `process.ProcessRuntime`, which holds what outlives a controller. Decides when
to start, to stop and what an end means; supervision, files and planning are elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from swarmlet.api import pb
from swarmlet.runtime.base import LogRecord, TaskFailed, TaskResources
from swarmlet.runtime.ending import first_of, raise_for_exit
from swarmlet.runtime.health import Health, HealthMonitor
from swarmlet.runtime.process_config import ProgramPlan, stop_grace_seconds_of, stop_signal_of
from swarmlet.runtime.process_logs import read_logs
from swarmlet.runtime.supervisor import SupervisedProgram, run_briefly

if TYPE_CHECKING:
    from swarmlet.runtime.process import ProcessRuntime

_log = structlog.get_logger(__name__)
_DIALLABLE = (pb.PORT_PROTOCOL_TCP, pb.PORT_PROTOCOL_UDP)


class ProcessController:
    """Implements `base.TaskController`."""

    def __init__(self, runtime: ProcessRuntime, task: pb.Task, resources: TaskResources) -> None:
        self._runtime = runtime
        self._task = task
        self._resources = replace(
            resources,
            node_id=resources.node_id or runtime.owner,
            node_hostname=resources.node_hostname or runtime.hostname,
        )
        self._directory = runtime.directory_of(task.id)
        self._plan: ProgramPlan | None = None
        self._launching: asyncio.Task[SupervisedProgram] | None = None
        self._stopping = asyncio.Event()
        self._monitor: HealthMonitor | None = None
        self._monitoring: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        if self._runtime.program(self._task.id) is None:
            self._plan = await self._planned()

    async def start(self) -> None:
        program = self._runtime.program(self._task.id)
        if program is None:
            if self._stopping.is_set():
                raise TaskFailed("task: stopped before it was started")
            if self._launching is None:
                plan = self._plan or await self._planned()
                self._plan = plan
                self._launching = asyncio.create_task(self._runtime.launch(self._task.id, plan.program))
            # A start that is given up midway leaves a program that `shutdown` knows of.
            program = await asyncio.shield(self._launching)
        if self._task.spec.container_spec.healthcheck.test:
            await self._until_healthy(program)

    async def wait(self) -> None:
        program = self._existing()
        if self._monitor is None:
            await program.ended.wait()
        else:
            await first_of(program.ended.wait(), self._monitor.unhealthy())
        if not program.ended.is_set():
            await self._fail_unhealthy(program)
        self._stop_monitoring()
        raise_for_exit(program.exit_code)

    async def shutdown(self) -> None:
        program = await self._told_to_end()
        if program is not None:
            spec = self._task.spec.container_spec
            await program.stop(stop_signal_of(spec), stop_grace_seconds_of(spec))

    async def terminate(self) -> None:
        program = await self._told_to_end()
        if program is not None:
            await program.kill()

    async def remove(self) -> None:
        await self._told_to_end()
        await self._runtime.forget(self._task.id)

    def container_status(self) -> pb.ContainerStatus | None:
        program = self._runtime.program(self._task.id)
        if program is None:
            return None
        return pb.ContainerStatus(
            container_id=self._task.id, pid=program.pid, exit_code=program.exit_code or 0
        )

    def endpoint_addresses(self) -> Sequence[pb.EndpointAddress]:
        record = self._runtime.record(self._task.id)
        if record is None:
            return []
        endpoint = self._task.endpoint
        targets = {(port.protocol, port.target_port) for port in endpoint.ports or endpoint.spec.ports}
        return [
            pb.EndpointAddress(protocol=protocol, target_port=port, address=record.address, port=port)
            for protocol, port in sorted(targets)
            if protocol in _DIALLABLE
        ]

    def port_status(self) -> pb.PortStatus | None:
        return None  # Host-mode ports are forwarded by the node, not by the program.

    def logs(self, options: pb.LogOptions) -> AsyncIterator[LogRecord]:
        program = self._runtime.program(self._task.id)
        if program is None:
            ended = asyncio.Event()
            ended.set()
        else:
            ended = program.ended
        return read_logs(
            self._directory,
            options,
            clock=self._runtime.clock(self._task.id),
            ended=ended,
            now=self._runtime.now,
            executor=self._runtime.executor,
        )

    async def _planned(self) -> ProgramPlan:
        try:
            return await self._runtime.in_thread(lambda: self._runtime.plan(self._task, self._resources))
        except OSError as error:
            raise TaskFailed(f"cannot prepare the task on node {self._runtime.hostname}: {error}") from error

    def _existing(self) -> SupervisedProgram:
        program = self._runtime.program(self._task.id)
        if program is None:
            raise TaskFailed(f"task: was not started on node {self._runtime.hostname}, or was removed")
        return program

    async def _told_to_end(self) -> SupervisedProgram | None:
        """The program, if it was ever started; from now on it is not started any more."""
        self._stopping.set()
        self._stop_monitoring()
        if self._launching is not None:
            await asyncio.gather(self._launching, return_exceptions=True)
        return self._runtime.program(self._task.id)

    async def _until_healthy(self, program: SupervisedProgram) -> None:
        monitor = self._monitor or await self._start_monitoring(program)
        if monitor is None:
            return
        await first_of(monitor.settled(), program.ended.wait(), self._stopping.wait())
        if program.ended.is_set():
            raise_for_exit(program.exit_code)
        elif self._stopping.is_set():
            raise TaskFailed("task: stopped before it was healthy")
        elif monitor.health is Health.UNHEALTHY:
            await self._fail_unhealthy(program)
        else:
            (self._directory / "healthy").touch()

    async def _start_monitoring(self, program: SupervisedProgram) -> HealthMonitor | None:
        self._plan = self._plan or await self._planned()
        check, probe = self._plan.health_check, self._plan.probe
        if check is None or probe is None or program.ended.is_set():
            return None

        async def answers_well(timeout_seconds: float) -> bool:
            return await run_briefly(probe, self._runtime.executor, timeout_seconds) == 0

        was_healthy = (self._directory / "healthy").exists()
        self._monitor = HealthMonitor(
            check, answers_well, health=Health.HEALTHY if was_healthy else Health.STARTING
        )
        self._monitoring = self._runtime.spawn(self._monitor.run())
        return self._monitor

    def _stop_monitoring(self) -> None:
        if self._monitoring is not None:
            self._monitoring.cancel()

    async def _fail_unhealthy(self, program: SupervisedProgram) -> None:
        _log.warning("task is unhealthy and is stopped", task_id=self._task.id)
        await self.shutdown()
        raise TaskFailed("task: unhealthy", program.exit_code)
