"""The latest status of every task, until a manager has committed it.

Filled by the task machines, emptied by confirmations. A new session begins with
everything that is not confirmed, so nothing is lost with a leader.
"""

from __future__ import annotations

import asyncio

from swarmlet.api import pb

UPDATES_MAX = 200
COLLECT_SECONDS = 0.005
"""How long statuses are collected, so that tasks that start together are reported together."""


class Reporter:
    def __init__(self) -> None:
        self._unconfirmed: dict[str, pb.TaskStatus] = {}
        self._unsent: dict[str, None] = {}
        self._in_flight: dict[int, dict[str, pb.TaskStatus]] = {}
        self._sequence = 0
        self._wake = asyncio.Event()

    def report(self, task_id: str, status: pb.TaskStatus) -> None:
        """Takes over `status`, which must not be changed afterwards."""
        self._unconfirmed[task_id] = status
        self._unsent[task_id] = None
        self._wake.set()

    def forget(self, task_id: str) -> None:
        """The cluster does not know the task any more."""
        self._unconfirmed.pop(task_id, None)
        self._unsent.pop(task_id, None)

    def restart(self) -> None:
        """A new session: everything that is not confirmed is to be sent again."""
        self._sequence = 0
        self._in_flight.clear()
        self._unsent = dict.fromkeys(self._unconfirmed)
        if self._unsent:
            self._wake.set()

    def confirmed(self, sequence: int) -> None:
        for task_id, status in self._in_flight.pop(sequence, {}).items():
            # Only if there is nothing newer by now.
            if self._unconfirmed.get(task_id) is status:
                del self._unconfirmed[task_id]
                self._unsent.pop(task_id, None)

    async def next(self) -> pb.StatusReport:
        """The next report to send, once there is something to say."""
        while not self._unsent:
            self._wake.clear()
            await self._wake.wait()
        await asyncio.sleep(COLLECT_SECONDS)
        task_ids = list(self._unsent)[:UPDATES_MAX]
        for task_id in task_ids:
            del self._unsent[task_id]
        self._sequence += 1
        statuses = {task_id: self._unconfirmed[task_id] for task_id in task_ids}
        self._in_flight[self._sequence] = statuses
        report = pb.StatusReport(sequence=self._sequence)
        for task_id, status in statuses.items():
            report.updates.add(task_id=task_id, status=status)
        return report
