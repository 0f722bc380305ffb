"""Agents without a node: they record what a dispatcher tells them and say what a test wants."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

from swarmlet.api import pb
from swarmlet.api.pb import TaskState
from swarmlet.manager.dispatcher.dispatcher import Dispatcher
from swarmlet.store.store import Store
from tests.builders import NOW, a_service, a_task

PATIENCE_SECONDS = 10.0


class FakeAgent:
    """One node's side of a session. `confirms` says whether it confirms every version at once."""

    def __init__(self, dispatcher: Dispatcher, node_id: str, *, confirms: bool = True) -> None:
        self.node_id = node_id
        self.tasks: dict[str, pb.Task] = {}
        self.services: dict[str, pb.ServiceEndpoints] = {}
        self.secrets: dict[str, pb.Secret] = {}
        self.info: pb.SessionInfo | None = None
        self.confirmations: list[int] = []
        self.subscriptions: list[pb.LogSubscription] = []
        self.versions: list[int] = []
        self.complete_sets = 0
        self.heartbeat_acks = 0
        self.error: BaseException | None = None
        self.confirms = confirms
        self._dispatcher = dispatcher
        self._outgoing: asyncio.Queue[pb.AgentMessage | None] = asyncio.Queue()
        self._heard = asyncio.Condition()
        self._session: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None

    async def connect(self, heartbeat_seconds: float = 0.05, address: str = "") -> FakeAgent:
        self.say(
            pb.AgentMessage(hello=pb.Hello(address=address, description=pb.NodeDescription(hostname="h")))
        )
        self._session = asyncio.create_task(self._listen())
        self._beating = asyncio.create_task(self._beat(heartbeat_seconds))
        await self.until(lambda: self.complete_sets > 0 or self.error is not None)
        return self

    async def close(self) -> None:
        self.stop_heartbeats()
        if self._session is not None:
            self._session.cancel()
            await asyncio.gather(self._session, return_exceptions=True)

    def stop_heartbeats(self) -> None:
        if self._beating is not None:
            self._beating.cancel()

    def say(self, message: pb.AgentMessage) -> None:
        self._outgoing.put_nowait(message)

    def confirm(self) -> None:
        self.say(pb.AgentMessage(applied=pb.AssignmentsApplied(version=self.versions[-1])))

    def report(self, task_id: str, state: TaskState.ValueType, sequence: int = 1, address: str = "") -> None:
        status = pb.TaskStatus(state=state)
        if address:
            status.endpoint_addresses.add(target_port=80, address=address, port=80)
        report = pb.StatusReport(sequence=sequence)
        report.updates.add(task_id=task_id, status=status)
        self.say(pb.AgentMessage(status_report=report))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            async with self._heard:
                await self._heard.wait_for(condition)

    def desired(self, task_id: str) -> TaskState.ValueType:
        return self.tasks[task_id].desired_state

    def endpoint_states(self, service_id: str) -> dict[str, pb.EndpointState.ValueType]:
        entry = self.services.get(service_id)
        return {} if entry is None else {e.task_id: e.state for e in entry.endpoints}

    async def _beat(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            self.say(pb.AgentMessage(heartbeat=pb.Heartbeat()))

    async def _incoming(self) -> AsyncIterator[pb.AgentMessage]:
        while (message := await self._outgoing.get()) is not None:
            yield message

    async def _listen(self) -> None:
        try:
            session = self._dispatcher.session(self.node_id, "10.0.0.9", self._incoming())
            async with aclosing(session) as messages:
                async for message in messages:
                    copy = pb.ManagerMessage()
                    copy.CopyFrom(message)
                    async with self._heard:
                        self._take(copy)
                        self._heard.notify_all()
            error: BaseException | None = ConnectionError("ended")
        except Exception as raised:
            error = raised
        async with self._heard:
            self.error = error
            self._heard.notify_all()

    def _take(self, message: pb.ManagerMessage) -> None:
        match message.WhichOneof("message"):
            case "session":
                self.info = message.session
            case "assignments":
                self._take_assignments(message.assignments)
            case "confirmation":
                self.confirmations.append(message.confirmation.sequence)
            case "heartbeat_ack":
                self.heartbeat_acks += 1
            case "log_subscription":
                self.subscriptions.append(message.log_subscription)

    def _take_assignments(self, assignments: pb.Assignments) -> None:
        if assignments.complete:
            self.complete_sets += 1
            self.tasks.clear()
            self.services.clear()
            self.secrets.clear()
        for secret_id in assignments.removed_secret_ids:
            self.secrets.pop(secret_id, None)
        self.secrets.update({s.id: s for s in assignments.secrets})
        self.tasks.update({t.id: t for t in assignments.tasks})
        for task_id in assignments.removed_task_ids:
            self.tasks.pop(task_id)
        self.services.update({s.service_id: s for s in assignments.services})
        for service_id in assignments.removed_service_ids:
            self.services.pop(service_id, None)
        self.versions.append(assignments.version)
        if self.confirms:
            self.confirm()


@asynccontextmanager
async def leading(
    store: Store,
    *,
    heartbeat_seconds: float | None = 5.0,
    confirm_wait_seconds: float = 60.0,
    barrier: Callable[[], Awaitable[None]] | None = None,
) -> AsyncGenerator[Dispatcher, None]:
    """A dispatcher that leads inside the block. By default nothing in it ends by time alone."""

    async def sure() -> None:
        return

    dispatcher = Dispatcher(
        store,
        now=lambda: NOW,
        rng=random.Random(1),
        managers=lambda: [pb.ManagerAddress(node_id="m1", address="10.0.0.1:2377")],
        barrier=barrier or sure,
        heartbeat_seconds=heartbeat_seconds,
        confirm_wait_seconds=confirm_wait_seconds,
        status_batch_seconds=0.001,
    )
    running = asyncio.create_task(dispatcher.run())
    await asyncio.sleep(0)
    try:
        yield dispatcher
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def a_published_service(port: int = 8080) -> pb.Service:
    service = a_service("web", replicas=2)
    service.endpoint.ports.add(target_port=80, published_port=port, publish_mode=pb.PUBLISH_MODE_INGRESS)
    return service


def a_serving_task(service: pb.Service, node_id: str, slot: int = 1) -> pb.Task:
    task = a_task(service, slot=slot, node_id=node_id)
    task.endpoint.CopyFrom(service.endpoint)
    task.status.endpoint_addresses.add(target_port=80, address="10.9.0.1", port=80)
    return task


async def change_task(store: Store, task_id: str, **fields: object) -> None:
    """Sets fields of a stored task; state is `status.state`."""

    def edit(transaction: object) -> None:
        task = pb.Task()
        task.CopyFrom(store.view.tasks.get(task_id) or pb.Task())
        state = fields.get("state")
        if state is not None:
            task.status.state = state  # type: ignore[assignment]
        desired = fields.get("desired")
        if desired is not None:
            task.desired_state = desired  # type: ignore[assignment]
        transaction.update(task)  # type: ignore[attr-defined]

    await store.update(edit)


async def stored(store: Store, condition: Callable[[], bool]) -> None:
    """Waits until the store is as `condition` says."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        with store.watching() as watcher:
            while not condition():
                await watcher.next()
