"""Which nodes are there: heartbeats in, node states out.

Owned by the dispatcher, which says when a node was heard; writes `Node.status`, and
orphans the tasks of nodes that stay away. Only the leader runs it, and from the
moment it begins to lead every node has the full grace to come back.
"""

from __future__ import annotations

import asyncio
import functools
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime

import structlog

from swarmlet.api import pb, taskstate
from swarmlet.api.errors import NotFound, SwarmletError
from swarmlet.store.store import Store, Transaction

MISSED_PERIODS = 3
"""Heartbeats that may be missing before a node is DOWN (SwarmKit's)."""
ORPHAN_SECONDS = 24 * 3600.0
"""How long a node is DOWN before its tasks are ORPHANED (SwarmKit's)."""
RETRY_SECONDS = 0.5
_IDLE_SECONDS = 3600.0

log = structlog.get_logger(__name__)


class Liveness:
    """Deadlines per node, on the loop's clock."""

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], datetime],
        period_seconds: Callable[[], float],
        went_down: Callable[[str], None],
    ) -> None:
        """`went_down` is told of a node after it has been stored as DOWN."""
        self._store = store
        self._now = now
        self._period_seconds = period_seconds
        self._went_down = went_down
        self._deadlines: dict[str, float] = {}
        self._orphan_at: dict[str, float] = {}
        # A node's way to DOWN and its way back must not overtake each other.
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wake = asyncio.Event()

    def begin(self) -> None:
        """Gives every stored node the grace; called when this manager begins to lead."""
        at = asyncio.get_running_loop().time()
        self._deadlines.clear()
        self._orphan_at.clear()
        for node in self._store.view.nodes:
            if node.status.state == pb.NODE_STATE_DOWN:
                self._orphan_at[node.id] = at + ORPHAN_SECONDS
            else:
                self._deadlines[node.id] = at + MISSED_PERIODS * self._period_seconds()
        for task in self._store.view.tasks:
            if task.node_id and self._store.view.nodes.get(task.node_id) is None:
                self._orphan_at[task.node_id] = at
        self._wake.set()

    def heard(self, node_id: str, period_seconds: float) -> None:
        """The node gave a sign of life and will give the next within `period_seconds`."""
        known = node_id in self._deadlines
        deadline = asyncio.get_running_loop().time() + MISSED_PERIODS * period_seconds
        self._deadlines[node_id] = deadline
        if not known:
            self._wake.set()

    def removed(self, node_id: str) -> None:
        """The node is no longer of the cluster: its tasks are orphaned at once."""
        self._deadlines.pop(node_id, None)
        self._locks.pop(node_id, None)
        self._orphan_at[node_id] = asyncio.get_running_loop().time()
        self._wake.set()

    async def register(self, node_id: str, hello: pb.Hello, address: str, period_seconds: float) -> pb.Node:
        """Stores the node as READY with what it says of itself; returns it as stored.

        Raises NotFound for a node that is not of this cluster, or what the store raises.
        """
        if self._store.view.nodes.get(node_id) is None:
            raise _unknown_node(node_id)
        self.heard(node_id, period_seconds)
        async with self._locks[node_id]:
            self._orphan_at.pop(node_id, None)
            await self._store.update(functools.partial(_make_ready, node_id, hello, address))
        node = self._store.view.nodes.get(node_id)
        if node is None:
            raise _unknown_node(node_id)
        return node

    async def describe(self, node_id: str, description: pb.NodeDescription) -> None:
        """Stores a new description of a node that is there."""

        def edit(transaction: Transaction) -> None:
            node = transaction.get(pb.Node, node_id)
            if node is None or node.description == description:
                return
            changed = pb.Node()
            changed.CopyFrom(node)
            changed.description.CopyFrom(description)
            transaction.update(changed)

        await self._store.update(edit)

    async def run(self) -> None:
        """Calls nodes DOWN and tasks ORPHANED when their time is over, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = min(
                [*self._deadlines.values(), *self._orphan_at.values()], default=loop.time() + _IDLE_SECONDS
            )
            try:
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
                self._wake.clear()
                continue
            except TimeoutError:
                pass
            if loop.time() - due > self._period_seconds():
                # This process itself stood still; the heartbeats it did not read do not count as missed.
                log.warning("the dispatcher was held up, nodes get their grace again")
                self.begin()
                continue
            await self._expire(loop.time())

    async def _expire(self, at: float) -> None:
        late = [node_id for node_id, deadline in self._deadlines.items() if deadline <= at]
        await asyncio.gather(*(self._take_down(node_id) for node_id in late))
        for node_id in [i for i, due in self._orphan_at.items() if due <= at]:
            del self._orphan_at[node_id]
            await self._orphan_tasks(node_id)

    async def _take_down(self, node_id: str) -> None:
        loop = asyncio.get_running_loop()
        async with self._locks[node_id]:
            if self._deadlines.get(node_id, loop.time() + 1) > loop.time():
                return
            try:
                await self._store.update(functools.partial(_make_down, node_id))
            except SwarmletError as error:
                log.warning("could not store that a node is down", node=node_id, error=str(error))
                self._deadlines[node_id] = loop.time() + RETRY_SECONDS
                return
            self._deadlines.pop(node_id, None)
            self._orphan_at[node_id] = loop.time() + ORPHAN_SECONDS
        log.warning("node is down", node=node_id, reason="heartbeat failure")
        self._went_down(node_id)

    async def _orphan_tasks(self, node_id: str) -> None:
        """Gives up the tasks of a node that will not come back."""
        tasks = self._store.view.tasks.find("node", node_id)
        units = [
            functools.partial(_make_orphan, task.id, self._now())
            for task in tasks
            if not taskstate.is_terminal(task.status.state)
        ]
        try:
            await self._store.batch(units)
        except SwarmletError as error:
            log.warning("could not orphan tasks, trying again", node=node_id, error=str(error))
            self._orphan_at[node_id] = asyncio.get_running_loop().time() + RETRY_SECONDS
            self._wake.set()


def _unknown_node(node_id: str) -> NotFound:
    return NotFound(
        f"node {node_id} is not part of this swarm: it was removed, or its state is of another one"
    )


def _make_ready(node_id: str, hello: pb.Hello, address: str, transaction: Transaction) -> None:
    node = transaction.get(pb.Node, node_id)
    if node is None:
        raise _unknown_node(node_id)
    changed = pb.Node()
    changed.CopyFrom(node)
    changed.status.CopyFrom(pb.NodeStatus(state=pb.NODE_STATE_READY, addr=address))
    if hello.HasField("description"):
        changed.description.CopyFrom(hello.description)
    if changed != node:
        transaction.update(changed)


def _make_down(node_id: str, transaction: Transaction) -> None:
    node = transaction.get(pb.Node, node_id)
    if node is None or node.status.state == pb.NODE_STATE_DOWN:
        return
    changed = pb.Node()
    changed.CopyFrom(node)
    changed.status.state = pb.NODE_STATE_DOWN
    changed.status.message = "heartbeat failure"
    transaction.update(changed)


def _make_orphan(task_id: str, at: datetime, transaction: Transaction) -> None:
    task = transaction.get(pb.Task, task_id)
    if task is None or taskstate.is_terminal(task.status.state):
        return
    changed = pb.Task()
    changed.CopyFrom(task)
    changed.status.state = pb.TASK_STATE_ORPHANED
    changed.status.timestamp.FromDatetime(at)
    del changed.status.endpoint_addresses[:]
    transaction.update(changed)
