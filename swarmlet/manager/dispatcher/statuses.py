"""Observed task statuses on their way from the agents into the store, in batches.

An observed state only moves forward and only the node that has the task may say it;
what breaks either rule is dropped. A report is confirmed once it is committed, so
an agent repeats what a dead leader took with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from swarmlet.api import pb, taskstate
from swarmlet.api.errors import SwarmletError
from swarmlet.store.store import Store, Transaction

RETRY_SECONDS = 0.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Report:
    node_id: str
    updates: Sequence[pb.TaskStatusUpdate]
    confirm: Callable[[], None]
    """Called once everything in the report is committed or known to be without effect."""


class StatusWriter:
    """Collects reports of all sessions; `run` commits them."""

    def __init__(self, store: Store, *, now: Callable[[], datetime], batch_seconds: float) -> None:
        self._store = store
        self._now = now
        self._batch_seconds = batch_seconds
        self._reports: list[Report] = []
        self._wake = asyncio.Event()

    def add(self, report: Report) -> None:
        self._reports.append(report)
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled. What could not be committed stays and is tried again."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._batch_seconds)
            self._wake.clear()
            reports, self._reports = self._reports, []
            try:
                waiting = await self._commit(reports)
            except SwarmletError as error:
                log.warning("task statuses not committed, trying again", error=str(error))
                waiting = reports
            if waiting:
                self._reports[:0] = waiting
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    def clear(self) -> None:
        """Forgets everything; the agents say it again to the next leader."""
        self._reports.clear()
        self._wake.clear()

    async def _commit(self, reports: list[Report]) -> list[Report]:
        """Returns the reports that other writers' changes kept out; they have to be tried again."""
        latest: dict[tuple[str, str], pb.TaskStatus] = {}
        for report in reports:
            for update in report.updates:
                key = (report.node_id, update.task_id)
                earlier = latest.get(key)
                if earlier is None or taskstate.may_move(earlier.state, update.status.state):
                    latest[key] = update.status
        now = self._now()
        units = [_unit(node_id, task_id, status, now) for (node_id, task_id), status in latest.items()]
        await self._store.batch(units)
        waiting = []
        for report in reports:
            keys = [(report.node_id, update.task_id) for update in report.updates]
            if any(self._is_news(node_id, task_id, latest[node_id, task_id]) for node_id, task_id in keys):
                waiting.append(report)
            else:
                report.confirm()
        return waiting

    def _is_news(self, node_id: str, task_id: str, status: pb.TaskStatus) -> bool:
        return _accepts(self._store.view.tasks.get(task_id), node_id, status)


def _accepts(task: pb.Task | None, node_id: str, status: pb.TaskStatus) -> bool:
    """Whether the status may, and does, change the stored task."""
    if task is None or task.node_id != node_id or status.state < pb.TASK_STATE_ASSIGNED:
        return False
    return taskstate.may_move(task.status.state, status.state) and task.status != status


def _unit(node_id: str, task_id: str, status: pb.TaskStatus, now: datetime) -> Callable[[Transaction], None]:
    def edit(transaction: Transaction) -> None:
        task = transaction.get(pb.Task, task_id)
        if task is None or not _accepts(task, node_id, status):
            return
        changed = pb.Task()
        changed.CopyFrom(task)
        changed.status.CopyFrom(status)
        if status.state == pb.TASK_STATE_FAILED and task.desired_state > pb.TASK_STATE_RUNNING:
            # It was given up before it ended, as when its node lost power: no failure of
            # the service, so none that the scheduler should hold against the node.
            changed.status.state = pb.TASK_STATE_SHUTDOWN
        if status.state == pb.TASK_STATE_RUNNING and not changed.HasField("running_since"):
            # By the managers' clock: an agent's may be hours off, and a monitor must not be.
            changed.running_since.FromDatetime(now)
        transaction.update(changed)

    return edit
