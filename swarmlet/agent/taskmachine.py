"""One task, from ASSIGNED to its end.

A machine drives one `TaskController` towards the desired state, one step after the
other, and says every state it reaches. It knows nothing of managers: the worker
feeds it the desired state and hears its statuses. Observed states only move
forward, and so does the desired one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol

import structlog

from swarmlet.api import pb, taskstate
from swarmlet.api.pb import TaskState
from swarmlet.runtime.base import TaskController, TaskFailed, TaskRejected

RETRY_SECONDS = 1.0
RETRY_SECONDS_MAX = 30.0
LOST_MESSAGE = "task was not found on its node after a restart"

log = structlog.get_logger(__name__)


class Reachability(Protocol):
    """How a running task is made reachable; part of network.embedded.ServiceProxy."""

    async def expose(
        self, task_id: str, addresses: Sequence[pb.EndpointAddress]
    ) -> Sequence[pb.EndpointAddress]: ...

    async def withdraw(self, task_id: str) -> None: ...


class TaskMachine:
    """Made by the worker, one per task; `run` is its life."""

    def __init__(
        self,
        task: pb.Task,
        make_controller: Callable[[Callable[[str], None]], TaskController],
        reachability: Reachability,
        *,
        now: Callable[[], datetime],
        changed: Callable[[TaskMachine], None],
    ) -> None:
        """`make_controller` is given the callback for progress; `changed` hears of every new status."""
        self.task = task
        self.status = pb.TaskStatus()
        self.status.CopyFrom(task.status)
        self.desired = task.desired_state
        self.controller = make_controller(self._progress)
        self._reachability = reachability
        self._now = now
        self._changed = changed
        self._desired_changed = asyncio.Event()
        self._status_changed = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        return taskstate.is_terminal(self.status.state)

    def desire(self, desired: TaskState.ValueType) -> None:
        """Takes up a new desired state; a lower one than before is ignored."""
        if desired > self.desired:
            self.desired = desired
            _pulse(self._desired_changed)

    def lost(self) -> None:
        """The task had been started, and this node has nothing of it any more: it must not run twice."""
        self._end(pb.TASK_STATE_FAILED, LOST_MESSAGE)

    async def reached(self, state: TaskState.ValueType) -> None:
        """Returns when the observed state is `state` or beyond."""
        while self.status.state < state:
            await self._status_changed.wait()

    async def run(self) -> None:
        """Drives the task to its end. When cancelled, what runs goes on running."""
        if self.has_ended:
            return
        if self.desired <= pb.TASK_STATE_RUNNING:
            await self._live_until_stopped()
        if not self.has_ended:
            await self._shut_down()
        await self._reachability.withdraw(self.task.id)

    async def remove(self) -> None:
        """Removes every trace, trying until it works."""
        await self._reachability.withdraw(self.task.id)
        await self._insist("remove", self.controller.remove)

    # ---- the way up

    async def _live_until_stopped(self) -> None:
        life = asyncio.create_task(self._live())
        stop = asyncio.create_task(self._stop_wanted())
        try:
            await asyncio.wait((life, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(life)
            await _cancel(stop)

    async def _live(self) -> None:
        try:
            await self._rise()
        except TaskRejected as error:
            self._end(pb.TASK_STATE_REJECTED, str(error))
        except TaskFailed as error:
            self._end(pb.TASK_STATE_FAILED, str(error), error.exit_code)
        except Exception as error:
            log.exception("runtime failed", task=self.task.id)
            self._end(pb.TASK_STATE_FAILED, f"runtime failed: {error!r}")

    async def _rise(self) -> None:
        self._enter(pb.TASK_STATE_ACCEPTED, "accepted")
        self._enter(pb.TASK_STATE_PREPARING, "preparing")
        await self.controller.prepare()
        self._enter(pb.TASK_STATE_READY, "prepared")
        while self.desired < pb.TASK_STATE_RUNNING:
            await self._desired_changed.wait()
        self._enter(pb.TASK_STATE_STARTING, "starting")
        await self.controller.start()
        addresses = await self._expose()
        self._enter(pb.TASK_STATE_RUNNING, "started", addresses)
        await self.controller.wait()
        self._enter(pb.TASK_STATE_COMPLETE, "finished")

    async def _expose(self) -> Sequence[pb.EndpointAddress]:
        try:
            return await self._reachability.expose(self.task.id, self.controller.endpoint_addresses())
        except OSError as error:
            raise TaskFailed(f"cannot make the task reachable from other nodes: {error}") from error

    # ---- the way down

    async def _stop_wanted(self) -> None:
        while self.desired <= pb.TASK_STATE_RUNNING:
            await self._desired_changed.wait()

    async def _shut_down(self) -> None:
        try:
            await self.controller.shutdown()
        except Exception as error:
            log.warning("task did not stop as told, killing it", task=self.task.id, error=str(error))
            await self._insist("kill", self.controller.terminate)
        self._enter(pb.TASK_STATE_SHUTDOWN, "shutdown")

    async def _insist(self, what: str, act: Callable[[], Awaitable[None]]) -> None:
        """Tries until it works: a task that may still be there must not be reported as gone."""
        delay_seconds = RETRY_SECONDS
        while True:
            try:
                await act()
                return
            except Exception as error:
                log.warning(f"could not {what} a task, trying again", task=self.task.id, error=str(error))
            await asyncio.sleep(delay_seconds)
            delay_seconds = min(2 * delay_seconds, RETRY_SECONDS_MAX)

    # ---- saying it

    def _progress(self, message: str) -> None:
        if not self.has_ended and self.status.state < pb.TASK_STATE_RUNNING:
            self._publish(self._next_status(self.status.state, message))

    def _enter(
        self,
        state: TaskState.ValueType,
        message: str,
        addresses: Sequence[pb.EndpointAddress] = (),
    ) -> None:
        """Says a state, unless an earlier life of this task had already gone beyond it."""
        if state < self.status.state or not taskstate.may_move(self.status.state, state):
            return
        status = self._next_status(state, message)
        if state == pb.TASK_STATE_RUNNING:
            status.endpoint_addresses.extend(addresses)
            ports = self.controller.port_status()
            if ports is not None:
                status.port_status.CopyFrom(ports)
        self._publish(status)

    def _end(self, state: TaskState.ValueType, err: str, exit_code: int | None = None) -> None:
        # Docker leaves the message of the step that failed beside the error.
        status = self._next_status(state, self.status.message)
        status.err = err
        if exit_code is not None:
            status.container_status.exit_code = exit_code
        self._publish(status)

    def _next_status(self, state: TaskState.ValueType, message: str) -> pb.TaskStatus:
        status = pb.TaskStatus(state=state, message=message)
        status.timestamp.FromDatetime(self._now())
        container = self.controller.container_status()
        if container is not None:
            status.container_status.CopyFrom(container)
        return status

    def _publish(self, status: pb.TaskStatus) -> None:
        self.status = status
        self._changed(self)
        _pulse(self._status_changed)


def _pulse(event: asyncio.Event) -> None:
    """Wakes those who wait now; each looks again at what it waits for."""
    event.set()
    event.clear()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
