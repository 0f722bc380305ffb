"""Sends the logs of this node's tasks to a manager that asked for them.

One reader per subscription; its batches are bounded in lines and bytes, and its queue
in batches, so a slow manager slows the reading and nothing piles up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import structlog

from swarmlet.agent.link import ManagerLink
from swarmlet.agent.taskmachine import TaskMachine
from swarmlet.api import pb
from swarmlet.api.errors import SwarmletError
from swarmlet.runtime.base import LogRecord

BATCH_LINES_MAX = 200
BATCH_BYTES_MAX = 256 * 1024
QUEUE_LINES_MAX = 2 * BATCH_LINES_MAX

log = structlog.get_logger(__name__)


class LogPublisher:
    """All subscriptions of one session."""

    def __init__(
        self, node_id: str, link: ManagerLink, machine_of: Callable[[str], TaskMachine | None]
    ) -> None:
        self._node_id = node_id
        self._link = link
        self._machine_of = machine_of
        self._readers: dict[str, asyncio.Task[None]] = {}

    def subscribe(self, subscription: pb.LogSubscription) -> None:
        """Begins to read, or ends it when the subscription says close."""
        known = self._readers.pop(subscription.id, None)
        if known is not None:
            known.cancel()
        if not subscription.close:
            reader = asyncio.create_task(self._publish(subscription))
            self._readers[subscription.id] = reader
            reader.add_done_callback(lambda _: self._readers.pop(subscription.id, None))

    async def close(self) -> None:
        readers = list(self._readers.values())
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    async def _publish(self, subscription: pb.LogSubscription) -> None:
        lines: asyncio.Queue[pb.LogLine | None] = asyncio.Queue(QUEUE_LINES_MAX)
        errors: list[str] = []
        reading = asyncio.create_task(self._read_all(subscription, lines, errors))
        try:
            await self._link.publish_logs(_batches(subscription.id, lines, errors))
        except SwarmletError as error:
            # The reader went away, or the session did.
            log.debug("log subscription ended", subscription=subscription.id, error=str(error))
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read_all(
        self,
        subscription: pb.LogSubscription,
        lines: asyncio.Queue[pb.LogLine | None],
        errors: list[str],
    ) -> None:
        reads = [
            self._read(task_id, subscription.options, lines, errors)
            for task_id in subscription.selector.task_ids
        ]
        await asyncio.gather(*reads)
        await lines.put(None)

    async def _read(
        self,
        task_id: str,
        options: pb.LogOptions,
        lines: asyncio.Queue[pb.LogLine | None],
        errors: list[str],
    ) -> None:
        machine = self._machine_of(task_id)
        if machine is None:
            errors.append(f"task {task_id} is not on the node any more")
            return
        if options.follow:
            await machine.reached(pb.TASK_STATE_STARTING)
        elif machine.status.state < pb.TASK_STATE_STARTING:
            return
        try:
            async for record in machine.controller.logs(options):
                await lines.put(_line(self._node_id, machine.task, record))
        except Exception as error:
            log.warning("cannot read logs", task=task_id, error=str(error))
            errors.append(f"logs of task {task_id} cannot be read: {error}")


async def _batches(
    subscription_id: str, lines: asyncio.Queue[pb.LogLine | None], errors: list[str]
) -> AsyncIterator[pb.LogBatch]:
    while True:
        batch = pb.LogBatch(subscription_id=subscription_id)
        size_bytes = 0
        line = await lines.get()
        while line is not None:
            batch.lines.append(line)
            size_bytes += len(line.data)
            if len(batch.lines) >= BATCH_LINES_MAX or size_bytes >= BATCH_BYTES_MAX or lines.empty():
                break
            line = lines.get_nowait()
        if line is None:
            batch.last = True
            batch.error = "; ".join(errors)
            yield batch
            return
        yield batch


def _line(node_id: str, task: pb.Task, record: LogRecord) -> pb.LogLine:
    line = pb.LogLine(
        task_id=task.id,
        node_id=node_id,
        service_id=task.service_id,
        stream=record.stream,
        data=record.data,
    )
    line.timestamp.FromDatetime(record.timestamp)
    return line
