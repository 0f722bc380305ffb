"""The agent: keeps a session with whoever leads, and the worker at work.

The node makes one and runs it for as long as the node is in a swarm. It never
writes the cluster's state: it reports, and the dispatcher writes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from swarmlet.agent.journal import FileJournal, TaskJournal
from swarmlet.agent.link import LinkSession, ManagerLink
from swarmlet.agent.logs import LogPublisher
from swarmlet.agent.reporter import Reporter
from swarmlet.agent.worker import Worker
from swarmlet.api import pb
from swarmlet.api.errors import NotFound, NotLeader, SwarmletError, Unavailable
from swarmlet.network.embedded import ServiceProxy
from swarmlet.runtime.base import Runtime

BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 1.0
HELLO_SECONDS = 3.0
"""How long a manager may take to answer the hello: it commits before it answers."""
SILENT_PERIODS = 2.5
"""Heartbeat periods without a word after which a manager counts as hung."""
DESCRIBE_SECONDS = 30.0
RUNTIME_RETRY_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Agent:
    def __init__(
        self,
        *,
        node_id: str,
        runtime: Runtime,
        state_dir: Path,
        link: ManagerLink,
        network: ServiceProxy,
        now: Callable[[], datetime],
        rng: random.Random,
        boot_id: str,
        address: str,
        journal: TaskJournal | None = None,
        on_session: Callable[[pb.SessionInfo], None] | None = None,
    ) -> None:
        """`address` is where others reach this node; empty: as the manager sees it.

        `on_session` hears of the node object and the managers whenever they change.
        The journal is in `state_dir`/tasks unless one is given. `runtime`, `link` and
        `network` stay the caller's to close.
        """
        self._node_id = node_id
        self._runtime = runtime
        self._link = link
        self._network = network
        self._rng = rng
        self._boot_id = boot_id
        self._address = address
        self._on_session = on_session
        self._reporter = Reporter()
        self._worker = Worker(
            node_id=node_id,
            runtime=runtime,
            reachability=network,
            journal=journal if journal is not None else FileJournal(state_dir / "tasks"),
            reporter=self._reporter,
            now=now,
        )
        self._description = pb.NodeDescription()
        self._running: asyncio.Task[None] | None = None
        self._session_opened = False
        self._period_seconds = 0.0
        self._period_changed = asyncio.Event()
        self.is_connected = False
        """Whether a session with the leader is open at the moment."""

    async def run(self) -> None:
        """Works until `stop` or cancellation; tasks go on running afterwards.

        Raises NotFound when the swarm does not know this node (any more); its tasks run
        until `remove_all_tasks`.
        """
        self._running = asyncio.current_task()
        try:
            await self._start_worker()
            await self._keep_session()
        except NotFound as error:
            log.error("this node is not part of the swarm any more, the agent stops", reason=str(error))
            raise
        finally:
            self._running = None
            await self._worker.stop()

    async def stop(self) -> None:
        """Ends `run`; tasks go on running and are adopted by the next agent."""
        running = self._running
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def remove_all_tasks(self) -> None:
        """Stops and removes every task of this node; for a node that leaves. After `stop`."""
        await self._worker.remove_all()

    # ---- sessions

    async def _start_worker(self) -> None:
        while True:
            try:
                self._description = await self._runtime.describe()
                await self._worker.start(self._description.hostname)
                return
            except Exception as error:
                log.error(
                    "the runtime is not ready, trying again", runtime=self._runtime.name, error=str(error)
                )
            await asyncio.sleep(RUNTIME_RETRY_SECONDS)

    async def _keep_session(self) -> None:
        backoff_seconds = BACKOFF_SECONDS_MIN
        was_redirected = False
        while True:
            self._session_opened = False
            redirected = False
            try:
                await self._hold_session()
            except NotFound:
                raise
            except NotLeader as error:
                redirected = bool(error.leader_address) and not was_redirected
            except SwarmletError as error:
                log.info("no session with the leader", error=str(error))
            except Exception:
                # A defect must not cost the cluster a node.
                log.exception("the session with the leader failed")
            finally:
                self.is_connected = False
            if self._session_opened:
                backoff_seconds = BACKOFF_SECONDS_MIN
            if not redirected:
                await asyncio.sleep(backoff_seconds * self._rng.uniform(0.5, 1.0))
                backoff_seconds = min(2 * backoff_seconds, BACKOFF_SECONDS_MAX)
            was_redirected = redirected

    async def _hold_session(self) -> None:
        """One session, until it ends. Raises why it did."""
        await self._describe()
        async with self._link.session() as session:
            hello = pb.Hello(description=self._description, address=self._address, boot_id=self._boot_id)
            await session.send(pb.AgentMessage(hello=hello))
            messages = aiter(session)
            first = await _next_message(messages, HELLO_SECONDS)
            if not first.HasField("session"):
                raise Unavailable("the manager did not begin with its session's facts")
            self._session_opened = self.is_connected = True
            self._take_session_info(first.session)
            log.info("session with the leader", heartbeat_seconds=round(self._period_seconds, 3))
            self._reporter.restart()
            await _until_first_ends(
                self._receive(session, messages),
                self._send_heartbeats(session),
                self._send_reports(session),
                self._send_descriptions(session),
            )

    async def _receive(self, session: LinkSession, messages: AsyncIterator[pb.ManagerMessage]) -> None:
        publisher = LogPublisher(self._node_id, self._link, self._worker.machine)
        confirming: set[asyncio.Task[None]] = set()
        try:
            while True:
                message = await _next_message(messages, SILENT_PERIODS * self._period_seconds)
                match message.WhichOneof("message"):
                    case "assignments":
                        services = self._worker.apply(message.assignments)
                        confirm = self._take_up(session, services, message.assignments.version)
                        task = asyncio.create_task(confirm)
                        confirming.add(task)
                        task.add_done_callback(confirming.discard)
                    case "confirmation":
                        self._reporter.confirmed(message.confirmation.sequence)
                    case "log_subscription":
                        publisher.subscribe(message.log_subscription)
                    case "session":
                        self._take_session_info(message.session)
        finally:
            for task in list(confirming):
                task.cancel()
            await asyncio.gather(*confirming, return_exceptions=True)
            await publisher.close()

    async def _take_up(
        self, session: LinkSession, services: Sequence[pb.ServiceEndpoints], version: int
    ) -> None:
        """Confirms a version once nothing new goes to the endpoints that it dropped."""
        try:
            await self._network.apply(services)
            await session.send(pb.AgentMessage(applied=pb.AssignmentsApplied(version=version)))
        except SwarmletError as error:
            log.debug("version not confirmed", version=version, error=str(error))
        except Exception:
            log.exception("endpoint table not taken up", version=version)

    async def _send_heartbeats(self, session: LinkSession) -> None:
        while True:
            await session.send(pb.AgentMessage(heartbeat=pb.Heartbeat()))
            self._period_changed.clear()
            try:
                # A new period counts from now on: the manager already waits by it.
                async with asyncio.timeout(self._period_seconds):
                    await self._period_changed.wait()
            except TimeoutError:
                continue

    async def _send_reports(self, session: LinkSession) -> None:
        while True:
            await session.send(pb.AgentMessage(status_report=await self._reporter.next()))

    async def _send_descriptions(self, session: LinkSession) -> None:
        while True:
            await asyncio.sleep(DESCRIBE_SECONDS)
            before = self._description
            await self._describe()
            if self._description != before:
                await session.send(pb.AgentMessage(description=self._description))

    async def _describe(self) -> None:
        try:
            self._description = await self._runtime.describe()
        except Exception as error:
            log.warning("the runtime does not describe itself", error=str(error))

    def _take_session_info(self, info: pb.SessionInfo) -> None:
        self._period_seconds = info.heartbeat_period_ns / 1e9
        self._period_changed.set()
        if self._on_session is not None:
            self._on_session(info)


async def _next_message(messages: AsyncIterator[pb.ManagerMessage], seconds: float) -> pb.ManagerMessage:
    """Raises Unavailable when the stream has ended or nothing comes in time."""
    try:
        async with asyncio.timeout(seconds):
            message = await anext(messages, None)
    except TimeoutError:
        raise Unavailable(f"the manager said nothing for {seconds:.1f} s") from None
    if message is None:
        raise Unavailable("the manager ended the session")
    return message


async def _until_first_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Runs all until one ends, ends the others, and raises what the first raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
