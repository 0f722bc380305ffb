"""Logs of services, fanned in from the agents.

The door for control is `service_logs`; control knows it only by its shape, since it
may not import this room:

    class LogSource(Protocol):
        def service_logs(
            self, *, service_id: str | None, task_ids: Sequence[str], options: pb.LogOptions
        ) -> AsyncIterator[pb.ServiceLogsResponse]: ...

Works on the leader, where the agents' sessions are. Agents send what they read
through `publish`. Nothing is stored; a reader who is slow slows the agents down.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Protocol

import structlog

from swarmlet.api import pb, taskstate
from swarmlet.api.errors import NotFound
from swarmlet.api.ids import new_id
from swarmlet.store.store import Store
from swarmlet.store.watch import Change, WatchOverflow

QUEUE_BATCHES_MAX = 64

log = structlog.get_logger(__name__)


class Sessions(Protocol):
    """What the broker needs of the dispatcher."""

    def subscribe_logs(self, node_id: str, subscription: pb.LogSubscription) -> bool: ...

    async def disconnected(self, node_id: str) -> None: ...


class LogBroker:
    def __init__(self, store: Store, sessions: Sessions, *, rng: random.Random) -> None:
        self._store = store
        self._sessions = sessions
        self._rng = rng
        self._parts: dict[str, _Part] = {}

    async def service_logs(
        self, *, service_id: str | None, task_ids: Sequence[str], options: pb.LogOptions
    ) -> AsyncGenerator[pb.ServiceLogsResponse, None]:
        """Lines of a service's tasks, or of the tasks named, as they come in from the nodes.

        Without follow it ends when every node has sent what it has. With follow it ends
        when the named tasks have ended; for a service, when the service is removed.
        Raises NotFound for a service that does not exist. Lines of one task are in
        order; lines of different tasks are not.
        """
        if service_id is not None and self._store.view.services.get(service_id) is None:
            raise NotFound(f"service {service_id} not found")
        reading = _Reading(self, service_id, options)
        follower: asyncio.Task[None] | None = None
        try:
            reading.add(self._tasks(service_id, task_ids))
            if service_id is not None and options.follow:
                reading.open_ended = True
                follower = asyncio.create_task(self._follow(reading, service_id))
            while (response := await reading.next()) is not None:
                yield response
        finally:
            if follower is not None:
                follower.cancel()
                await asyncio.gather(follower, return_exceptions=True)
            reading.close()

    async def publish(self, node_id: str, batches: AsyncIterator[pb.LogBatch]) -> None:
        """Takes in what a node has read; returns when the node ends the stream.

        Raises NotFound once nobody reads that subscription (any more).
        """
        async for batch in batches:
            part = self._parts.get(batch.subscription_id)
            if part is None or part.node_id != node_id:
                raise NotFound("log subscription has ended")
            await part.take(batch)

    # ---- for _Reading

    def open(self, part: _Part, task_ids: Sequence[str], options: pb.LogOptions) -> bool:
        part.id = new_id(self._rng)
        subscription = pb.LogSubscription(
            id=part.id, selector=pb.LogSelector(task_ids=task_ids), options=options
        )
        if not self._sessions.subscribe_logs(part.node_id, subscription):
            return False
        self._parts[part.id] = part
        return True

    def close(self, part: _Part) -> None:
        if self._parts.pop(part.id, None) is not None:
            self._sessions.subscribe_logs(part.node_id, pb.LogSubscription(id=part.id, close=True))

    def hostname(self, node_id: str) -> str:
        node = self._store.view.nodes.get(node_id)
        return node.description.hostname if node is not None and node.description.hostname else node_id

    async def disconnected(self, node_id: str) -> None:
        await self._sessions.disconnected(node_id)

    # ---- which tasks

    def _tasks(self, service_id: str | None, task_ids: Sequence[str]) -> list[pb.Task]:
        view = self._store.view
        named = [task for task in (view.tasks.get(i) for i in task_ids) if task is not None]
        of_service = [] if service_id is None else view.tasks.find("service", service_id)
        return [task for task in [*named, *of_service] if _may_have_logs(task)]

    async def _follow(self, reading: _Reading, service_id: str) -> None:
        """Adds the tasks that the service gets while its logs are read."""

        def concerns(change: Change) -> bool:
            value = change.current
            if isinstance(value, pb.Service):
                return value.id == service_id
            return isinstance(value, pb.Task) and value.service_id == service_id

        with self._store.watching(concerns) as watcher:
            while self._store.view.services.get(service_id) is not None:
                reading.add(self._tasks(service_id, ()))
                try:
                    await watcher.next()
                except WatchOverflow:
                    log.info("reading the service's tasks again", service=service_id)
        reading.open_ended = False
        reading.wake()


class _Reading:
    """One reader: its queue and the nodes that it still expects something from."""

    def __init__(self, broker: LogBroker, service_id: str | None, options: pb.LogOptions) -> None:
        self.open_ended = False
        self._broker = broker
        self._service_id = service_id
        self._options = options
        self._known: set[str] = set()
        self._parts: dict[_Part, asyncio.Task[None]] = {}
        self._queue: asyncio.Queue[pb.ServiceLogsResponse | None] = asyncio.Queue(QUEUE_BATCHES_MAX)
        self._warnings: dict[str, None] = {}

    def add(self, tasks: Iterable[pb.Task]) -> None:
        """Subscribes to what is new among the tasks, one subscription per node."""
        per_node: defaultdict[str, list[str]] = defaultdict(list)
        for task in tasks:
            if task.id not in self._known:
                self._known.add(task.id)
                per_node[task.node_id].append(task.id)
        for node_id, task_ids in per_node.items():
            part = _Part(self, node_id)
            if self._broker.open(part, task_ids, self._options):
                self._parts[part] = asyncio.create_task(self._lose(part))
            else:
                self._warn(node_id, "is not available")

    async def next(self) -> pb.ServiceLogsResponse | None:
        """The next lines or warnings; None when there will be no more."""
        while True:
            if self._warnings:
                warnings, self._warnings = list(self._warnings), {}
                return pb.ServiceLogsResponse(warnings=warnings)
            if self._queue.empty() and not self._parts and not self.open_ended:
                return None
            response = await self._queue.get()
            if response is not None:
                return response

    def wake(self) -> None:
        """Makes `next` look again; a full queue does so by itself."""
        if not self._queue.full():
            self._queue.put_nowait(None)

    async def put(self, batch: pb.LogBatch, part: _Part) -> None:
        if batch.lines:
            await self._queue.put(pb.ServiceLogsResponse(lines=batch.lines))
        if batch.error:
            self._warn(part.node_id, f"says: {batch.error}")
        if batch.last:
            self._end(part)

    def close(self) -> None:
        for part in list(self._parts):
            self._end(part)
        # Whoever waits to put something finds room and then its subscription ended.
        while not self._queue.empty():
            self._queue.get_nowait()

    async def _lose(self, part: _Part) -> None:
        await self._broker.disconnected(part.node_id)
        self._warn(part.node_id, "was disconnected")
        self._end(part)

    def _end(self, part: _Part) -> None:
        waiting = self._parts.pop(part, None)
        if waiting is not None and waiting is not asyncio.current_task():
            waiting.cancel()
        self._broker.close(part)
        self.wake()

    def _warn(self, node_id: str, what: str) -> None:
        hostname = self._broker.hostname(node_id)
        self._warnings[f"incomplete log stream: node {hostname} {what}"] = None
        self.wake()


class _Part:
    """One node's share of a reading."""

    def __init__(self, reading: _Reading, node_id: str) -> None:
        self.id = ""
        self.node_id = node_id
        self._reading = reading

    async def take(self, batch: pb.LogBatch) -> None:
        await self._reading.put(batch, self)


def _may_have_logs(task: pb.Task) -> bool:
    if not task.node_id or task.status.state < pb.TASK_STATE_ASSIGNED:
        return False
    return task.status.state >= pb.TASK_STATE_STARTING or not taskstate.is_terminal(task.desired_state)
