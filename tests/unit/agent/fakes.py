"""A manager and a link in memory, for tests of the agent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from swarmlet.agent.agent import Agent
from swarmlet.agent.journal import TaskJournal
from swarmlet.api import pb
from swarmlet.api.errors import Unavailable
from swarmlet.api.pb import TaskState
from swarmlet.network.embedded import NoProxy, ServiceProxy
from swarmlet.runtime.simulated import SimulatedRuntime
from tests.builders import NOW

PATIENCE_SECONDS = 10.0
NODE_ID = "node1"


class FakeManager:
    """Implements `link.ManagerLink`: answers the hello, records the rest, sends what a test says."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        """Raised by every attempt at a session, if set."""
        self.attempts = 0
        self.hellos: list[pb.Hello] = []
        self.statuses: dict[str, pb.TaskStatus] = {}
        self.history: dict[str, list[TaskState.ValueType]] = {}
        self.reports: list[pb.StatusReport] = []
        self.applied: list[int] = []
        self.log_batches: list[pb.LogBatch] = []
        self.confirms_reports = True
        self.answers_heartbeats = True
        self.heartbeat_seconds = 0.05
        self.heartbeats = 0
        self._outgoing: asyncio.Queue[pb.ManagerMessage | None] = asyncio.Queue()
        self._version = 0
        self._heard = asyncio.Condition()

    # ---- what a test says

    def assign(self, *tasks: pb.Task, complete: bool = False, **fields: object) -> int:
        self._version += 1
        assignments = pb.Assignments(version=self._version, complete=complete, tasks=tasks)
        assignments.MergeFrom(pb.Assignments(**fields))  # type: ignore[arg-type]
        self.say(pb.ManagerMessage(assignments=assignments))
        return self._version

    def say(self, message: pb.ManagerMessage | None) -> None:
        self._outgoing.put_nowait(message)

    def hang_up(self) -> None:
        self.say(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            async with self._heard:
                await self._heard.wait_for(condition)

    async def until_state(self, task: pb.Task, state: TaskState.ValueType) -> pb.TaskStatus:
        await self.until(lambda: task.id in self.statuses and self.statuses[task.id].state == state)
        return self.statuses[task.id]

    # ---- the link

    def session(self) -> AbstractAsyncContextManager[_Session]:
        return self._open()

    async def publish_logs(self, batches: AsyncIterator[pb.LogBatch]) -> None:
        async for batch in batches:
            async with self._heard:
                self.log_batches.append(batch)
                self._heard.notify_all()

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[_Session, None]:
        async with self._heard:
            self.attempts += 1
            self._heard.notify_all()
        if self.error is not None:
            raise self.error
        yield _Session(self)

    async def receive(self, message: pb.AgentMessage) -> None:
        async with self._heard:
            match message.WhichOneof("message"):
                case "hello":
                    self.hellos.append(message.hello)
                case "heartbeat":
                    self.heartbeats += 1
                    if self.answers_heartbeats:
                        self.say(pb.ManagerMessage(heartbeat_ack=pb.HeartbeatAck()))
                case "applied":
                    self.applied.append(message.applied.version)
                case "status_report":
                    self._take_report(message.status_report)
            self._heard.notify_all()

    def _take_report(self, report: pb.StatusReport) -> None:
        self.reports.append(report)
        for update in report.updates:
            self.statuses[update.task_id] = update.status
            self.history.setdefault(update.task_id, []).append(update.status.state)
        if self.confirms_reports:
            self.say(pb.ManagerMessage(confirmation=pb.StatusConfirmation(sequence=report.sequence)))

    async def next(self) -> pb.ManagerMessage | None:
        return await self._outgoing.get()


class _Session:
    def __init__(self, manager: FakeManager) -> None:
        self._manager = manager

    async def send(self, message: pb.AgentMessage) -> None:
        copy = pb.AgentMessage()
        copy.CopyFrom(message)
        await self._manager.receive(copy)

    async def __aiter__(self) -> AsyncIterator[pb.ManagerMessage]:
        info = pb.SessionInfo(heartbeat_period_ns=int(self._manager.heartbeat_seconds * 1e9))
        yield pb.ManagerMessage(session=info)
        while (message := await self._manager.next()) is not None:
            yield message
        raise Unavailable("hung up")


@asynccontextmanager
async def an_agent(
    manager: FakeManager,
    runtime: SimulatedRuntime,
    state_dir: Path,
    network: ServiceProxy | None = None,
    journal: TaskJournal | None = None,
) -> AsyncGenerator[Agent, None]:
    """An agent that runs inside the block and is stopped, as a daemon is, at its end."""
    agent = Agent(
        node_id=NODE_ID,
        runtime=runtime,
        state_dir=state_dir,
        link=manager,
        network=network or NoProxy(),
        now=lambda: NOW,
        rng=random.Random(1),
        boot_id="boot",
        address="127.0.0.1",
        journal=journal,
    )
    running = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        await agent.stop()
        await asyncio.gather(running, return_exceptions=True)
