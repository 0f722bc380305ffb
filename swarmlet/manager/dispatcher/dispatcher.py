"""The dispatcher: agents' sessions on one side, the store on the other.

The node runs `Dispatcher.run` while this manager leads; `session` is one agent's
stream, in plain protobuf messages (gRPC is `grpc.py`'s business). One watch of the
store marks what changed in the sessions concerned, so the cost of a change does not
depend on how many nodes or tasks there are.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime

import structlog

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument, NotFound, NotLeader, SwarmletError, Unavailable
from swarmlet.api.pb import TaskState
from swarmlet.manager.dispatcher.endpoints import EndpointTable, affects_endpoints
from swarmlet.manager.dispatcher.liveness import Liveness
from swarmlet.manager.dispatcher.session import Session
from swarmlet.manager.dispatcher.shutdowns import ShutdownGate
from swarmlet.manager.dispatcher.statuses import Report, StatusWriter
from swarmlet.store.store import Store
from swarmlet.store.tables import Tables
from swarmlet.store.watch import Change, WatchOverflow

HEARTBEAT_SECONDS = 1.0
HEARTBEAT_JITTER = 0.1
"""Share by which each session's period differs, so that heartbeats do not come in step."""
CONFIRM_WAIT_SECONDS = 2.0
"""How long a shutdown waits at most for all nodes to take the task out of their balancers."""
STATUS_BATCH_SECONDS = 0.025
HELLO_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Dispatcher:
    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], datetime],
        rng: random.Random,
        managers: Callable[[], Sequence[pb.ManagerAddress]],
        barrier: Callable[[], Awaitable[None]],
        heartbeat_seconds: float | None = None,
        confirm_wait_seconds: float = CONFIRM_WAIT_SECONDS,
        status_batch_seconds: float = STATUS_BATCH_SECONDS,
    ) -> None:
        """`managers` is what agents are told; `heartbeat_seconds` overrides the cluster's spec.

        `barrier` is agreement's: no session begins before it has returned.
        """
        self._store = store
        self._rng = rng
        self._managers = managers
        self._barrier = barrier
        self._heartbeat_seconds = heartbeat_seconds
        self._leading = False
        self._period_told = 0.0
        self._sessions: dict[str, Session] = {}
        self._table = EndpointTable()
        self._gate = ShutdownGate(
            wait_seconds=confirm_wait_seconds,
            confirmed_revision=self._confirmed_revision,
            release=self._release_shutdown,
        )
        self._statuses = StatusWriter(store, now=now, batch_seconds=status_batch_seconds)
        self._liveness = Liveness(
            store, now=now, period_seconds=self._period_seconds, went_down=self._node_went_down
        )

    # ---- the leader's part

    async def run(self) -> None:
        """Works while this manager leads: start it on leadership, cancel it when that ends.

        On the way out every session is ended with NotLeader.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch())
                group.create_task(self._statuses.run())
                group.create_task(self._liveness.run())
        finally:
            self._leading = False
            self._gate.clear()
            self._statuses.clear()
            sessions, self._sessions = self._sessions, {}
            for session in sessions.values():
                session.close(NotLeader())

    async def _watch(self) -> None:
        with self._store.watching() as watcher:
            self._begin()
            while True:
                try:
                    self._process(await watcher.next())
                except WatchOverflow:
                    log.info("reading everything again")
                    self._read_everything()

    def _begin(self) -> None:
        """What a predecessor had told the agents is not known here, so all of it counts as told just now."""
        self._table = EndpointTable()
        self._liveness.begin()
        for service in self._store.view.services:
            self._table.refresh(self._store.view, service.id)
        for task in self._store.view.tasks.find("state", pb.TASK_STATE_RUNNING):
            if task.status.endpoint_addresses and not self._table.is_active(task.id):
                self._gate.hold(task.id, self._table.revision)
        self._period_told = self._period_seconds()
        self._leading = True
        self._gate.check()

    def _read_everything(self) -> None:
        self._set_periods()
        known = {s.id for s in self._store.view.services} | self._table.services.keys()
        self._refresh_services(known)
        for session in self._sessions.values():
            session.everything_changed()
        self._gate.check()

    def _process(self, changes: Iterable[Change]) -> None:
        services: dict[str, None] = {}
        tasks: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for change in changes:
            old, new = change.old, change.new
            match change.current:
                case pb.Task() as task:
                    if task.node_id:
                        tasks[task.node_id][task.id] = None
                    if affects_endpoints(_as_task(old), _as_task(new)):
                        services[task.service_id] = None
                case pb.Service() as service:
                    services[service.id] = None
                case pb.Cluster():
                    self._set_periods()
                case pb.Node() as node:
                    services.update(dict.fromkeys(self._node_changed(node, old, new)))
        # The table first: a task that leaves it must be held before its own agent is told.
        self._refresh_services(services)
        for node_id, task_ids in tasks.items():
            session = self._sessions.get(node_id)
            if session is not None:
                session.tasks_changed(task_ids)
        self._gate.check()

    def _node_changed(self, node: pb.Node, old: object, new: object) -> list[str]:
        """Returns the services whose endpoints the change may have changed."""
        session = self._sessions.get(node.id)
        if new is None:
            self._liveness.removed(node.id)
            if session is not None:
                session.close(NotFound(f"node {node.id} was removed from the swarm"))
        elif session is not None and _role_facts(old) != _role_facts(new):
            session.info_changed()
        if _manager_facts(old) != _manager_facts(new):
            self.managers_changed()
        if _state_of(old) == _state_of(new):
            return []
        return [task.service_id for task in self._store.view.tasks.find("node", node.id)]

    def _refresh_services(self, service_ids: Iterable[str]) -> None:
        changed = []
        for service_id in service_ids:
            left = self._table.refresh(self._store.view, service_id)
            if left is None:
                continue
            changed.append(service_id)
            for task_id in left:
                self._hold_shutdown(task_id)
        if changed:
            for session in self._sessions.values():
                session.services_changed(changed)

    def _hold_shutdown(self, task_id: str) -> None:
        """Also before the task is to stop, or can be told to.

        What is left of a removed service will be a moment later, and a node that is down
        may come back before all others have stopped to lead connections to it.
        """
        task = self._store.view.tasks.get(task_id)
        if task is not None and task.status.state == pb.TASK_STATE_RUNNING:
            self._gate.hold(task_id, self._table.revision)

    def _release_shutdown(self, task_id: str) -> None:
        task = self._store.view.tasks.get(task_id)
        session = self._sessions.get(task.node_id) if task is not None else None
        if session is not None:
            session.tasks_changed([task_id])

    def _confirmed_revision(self) -> float:
        """The newest revision of the table that every READY node has taken up."""
        confirmed = math.inf
        for node in self._store.view.nodes:
            if node.status.state == pb.NODE_STATE_READY:
                session = self._sessions.get(node.id)
                confirmed = min(confirmed, 0 if session is None else session.confirmed_revision)
        return confirmed

    def _node_went_down(self, node_id: str) -> None:
        session = self._sessions.get(node_id)
        if session is not None:
            session.close(Unavailable(f"node {node_id} missed its heartbeats"))

    def _period_seconds(self) -> float:
        if self._heartbeat_seconds is not None:
            return self._heartbeat_seconds
        cluster = self._store.view.cluster()
        stored_ns = cluster.spec.dispatcher.heartbeat_period_ns if cluster is not None else 0
        return stored_ns / 1e9 or HEARTBEAT_SECONDS

    def _set_periods(self) -> None:
        """Tells the agents of another heartbeat period."""
        wanted = self._period_seconds()
        if wanted == self._period_told:
            return
        self._period_told = wanted
        for session in self._sessions.values():
            session.period_seconds = self._jittered(wanted)
            session.info_changed()

    def _jittered(self, period_seconds: float) -> float:
        return period_seconds * self._rng.uniform(1 - HEARTBEAT_JITTER, 1 + HEARTBEAT_JITTER)

    # ---- what sessions read

    @property
    def view(self) -> Tables:
        return self._store.view

    @property
    def table(self) -> EndpointTable:
        return self._table

    def told_desired_state(self, task: pb.Task) -> TaskState.ValueType:
        """The desired state, unless the task must first leave the balancers.

        A task that is still active in the table is one whose change this dispatcher has
        not processed yet: the store may be ahead of the watch.
        """
        if task.desired_state <= pb.TASK_STATE_RUNNING:
            return task.desired_state
        if self._gate.holds(task.id) or self._table.is_active(task.id):
            return pb.TASK_STATE_RUNNING
        return task.desired_state

    def session_info(self, node_id: str, period_seconds: float) -> pb.SessionInfo:
        return pb.SessionInfo(
            node=self._store.view.nodes.get(node_id),
            managers=self._managers(),
            heartbeat_period_ns=int(period_seconds * 1e9),
        )

    # ---- for others of this manager

    def managers_changed(self) -> None:
        """Tells every agent the managers anew."""
        for session in self._sessions.values():
            session.info_changed()

    def subscribe_logs(self, node_id: str, subscription: pb.LogSubscription) -> bool:
        """Passes a subscription to a node; False when it is not connected."""
        session = self._sessions.get(node_id)
        if session is None or session.closed.is_set():
            return False
        session.subscribe_logs(subscription)
        return True

    async def disconnected(self, node_id: str) -> None:
        """Returns when the node's present session has ended; at once when there is none."""
        session = self._sessions.get(node_id)
        if session is not None:
            await session.closed.wait()

    # ---- sessions

    async def session(
        self, node_id: str, peer_address: str, incoming: AsyncIterator[pb.AgentMessage]
    ) -> AsyncGenerator[pb.ManagerMessage, None]:
        """One agent's stream, until the agent goes, a newer session of the node comes, or leadership ends.

        `peer_address` is the agent's host as this manager sees it. Raises NotLeader,
        NotFound for a node that is not of this swarm, InvalidArgument for a stream
        that does not begin with Hello, Unavailable when the node could not be stored.
        """
        hello = await self._hello(incoming)
        # A leader that was replaced without noticing would tell, from its old state, a node
        # that it is unknown, or to remove what it was given since.
        await self._barrier()
        period_seconds = self._jittered(self._period_seconds())
        await self._liveness.register(node_id, hello, hello.address or peer_address, period_seconds)
        if not self._leading:
            raise NotLeader
        session = Session(node_id, self, period_seconds=period_seconds)
        self._replace_session(session)
        reading = asyncio.create_task(self._read(session, incoming))
        try:
            async with aclosing(session.messages()) as messages:
                async for message in messages:
                    yield message
        finally:
            session.close()
            if self._sessions.get(node_id) is session:
                del self._sessions[node_id]
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _hello(self, incoming: AsyncIterator[pb.AgentMessage]) -> pb.Hello:
        if not self._leading:
            raise NotLeader
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await anext(incoming, None)
        except TimeoutError:
            first = None
        if first is None or not first.HasField("hello"):
            raise InvalidArgument("a session begins with a hello message")
        return first.hello

    def _replace_session(self, session: Session) -> None:
        older = self._sessions.get(session.node_id)
        if older is not None:
            older.close(Unavailable("replaced by a newer session of the same node"))
        self._sessions[session.node_id] = session

    async def _read(self, session: Session, incoming: AsyncIterator[pb.AgentMessage]) -> None:
        try:
            async for message in incoming:
                if session.closed.is_set():
                    return
                self._liveness.heard(session.node_id, session.period_seconds)
                await self._receive(session, message)
        except SwarmletError as error:
            session.close(error)
        except Exception as error:
            # Whatever the transport raises for a stream that broke.
            log.info("session broke", node=session.node_id, error=repr(error))
        finally:
            session.close()

    async def _receive(self, session: Session, message: pb.AgentMessage) -> None:
        match message.WhichOneof("message"):
            case "heartbeat":
                session.heartbeat_received()
            case "status_report":
                report = message.status_report
                self._statuses.add(
                    Report(session.node_id, list(report.updates), lambda: session.confirm(report.sequence))
                )
            case "applied":
                session.applied(message.applied.version)
                self._gate.check()
            case "description":
                await self._liveness.describe(session.node_id, message.description)
            case _:
                raise InvalidArgument("a session has one hello message, at its beginning")


def _as_task(value: object) -> pb.Task | None:
    return value if isinstance(value, pb.Task) else None


def _state_of(value: object) -> object:
    return value.status.state if isinstance(value, pb.Node) else None


def _role_facts(value: object) -> object:
    return (value.spec, value.certified_role) if isinstance(value, pb.Node) else None


def _manager_facts(value: object) -> object:
    if not isinstance(value, pb.Node) or not value.HasField("manager_status"):
        return None
    return value.manager_status.addr
