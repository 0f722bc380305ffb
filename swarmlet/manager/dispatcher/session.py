"""One agent's session: what it has been told, what it must still be told, what it confirmed.

Made and fed by the dispatcher; holds no state that outlives the stream. Nothing is
queued: the dispatcher marks what changed, and the messages are made from the store
when the stream can take them, so a slow agent costs no memory and gets the newest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Protocol

from swarmlet.api import pb, taskstate
from swarmlet.api.pb import TaskState
from swarmlet.manager.dispatcher.endpoints import EndpointTable
from swarmlet.store.tables import Tables

FLUSH_SECONDS = 0.005
"""How long changes are collected before they are sent."""


class Source(Protocol):
    """What a session reads when it makes a message."""

    @property
    def view(self) -> Tables: ...

    @property
    def table(self) -> EndpointTable: ...

    def told_desired_state(self, task: pb.Task) -> TaskState.ValueType:
        """The desired state that the task's agent may know of now."""

    def session_info(self, node_id: str, period_seconds: float) -> pb.SessionInfo: ...


class Session:
    def __init__(self, node_id: str, source: Source, *, period_seconds: float) -> None:
        self.node_id = node_id
        self.period_seconds = period_seconds
        self.closed = asyncio.Event()
        self.confirmed_revision = 0
        """Revision of the endpoint table that the agent has taken up."""
        self._source = source
        self._error: Exception | None = None
        self._wake = asyncio.Event()
        self._version = 0
        self._revision_of_version: dict[int, int] = {}
        # What the agent has, and what may differ from it.
        self._told: dict[str, TaskState.ValueType] = {}
        self._secret_users: dict[str, set[str]] = {}
        self._config_users: dict[str, set[str]] = {}
        self._complete_due = True
        self._dirty_tasks: dict[str, None] = {}
        self._dirty_services: dict[str, None] = {}
        self._info_due = True
        self._ack_due = False
        self._confirmations: list[int] = []
        self._log_subscriptions: list[pb.LogSubscription] = []
        self._wake.set()

    # ---- marking, by the dispatcher

    def tasks_changed(self, task_ids: Iterable[str]) -> None:
        self._dirty_tasks.update(dict.fromkeys(task_ids))
        self._wake.set()

    def services_changed(self, service_ids: Iterable[str]) -> None:
        self._dirty_services.update(dict.fromkeys(service_ids))
        self._wake.set()

    def everything_changed(self) -> None:
        self._complete_due = True
        self._wake.set()

    def info_changed(self) -> None:
        self._info_due = True
        self._wake.set()

    def heartbeat_received(self) -> None:
        self._ack_due = True
        self._wake.set()

    def confirm(self, sequence: int) -> None:
        self._confirmations.append(sequence)
        self._wake.set()

    def subscribe_logs(self, subscription: pb.LogSubscription) -> None:
        self._log_subscriptions.append(subscription)
        self._wake.set()

    def applied(self, version: int) -> None:
        """The agent has taken up `version`; later versions imply earlier ones."""
        revision = self._revision_of_version.get(version)
        if revision is None:
            return
        self.confirmed_revision = max(self.confirmed_revision, revision)
        for old in [v for v in self._revision_of_version if v <= version]:
            del self._revision_of_version[old]

    def close(self, error: Exception | None = None) -> None:
        """Ends the stream, with `error` if there is one. Only the first call counts."""
        if not self.closed.is_set():
            self._error = error
            self.closed.set()
            self._wake.set()

    # ---- sending

    async def messages(self) -> AsyncGenerator[pb.ManagerMessage, None]:
        """Everything for the agent, until the session is closed; raises what it was closed with."""
        while True:
            await self._wake.wait()
            if not self.closed.is_set():
                await asyncio.sleep(FLUSH_SECONDS)
            self._wake.clear()
            for message in self._due():
                if self.closed.is_set():
                    break
                yield message
            if self.closed.is_set():
                if self._error is not None:
                    raise self._error
                return

    def _due(self) -> list[pb.ManagerMessage]:
        due = []
        if self._info_due:
            self._info_due = False
            info = self._source.session_info(self.node_id, self.period_seconds)
            due.append(pb.ManagerMessage(session=info))
        if self._ack_due:
            self._ack_due = False
            due.append(pb.ManagerMessage(heartbeat_ack=pb.HeartbeatAck()))
        confirmations, self._confirmations = self._confirmations, []
        due.extend(
            pb.ManagerMessage(confirmation=pb.StatusConfirmation(sequence=sequence))
            for sequence in confirmations
        )
        assignments = self._complete() if self._complete_due else self._difference()
        if assignments is not None:
            due.append(pb.ManagerMessage(assignments=assignments))
        subscriptions, self._log_subscriptions = self._log_subscriptions, []
        due.extend(pb.ManagerMessage(log_subscription=subscription) for subscription in subscriptions)
        return due

    def _complete(self) -> pb.Assignments:
        self._complete_due = False
        self._dirty_tasks.clear()
        self._dirty_services.clear()
        self._told.clear()
        self._secret_users.clear()
        self._config_users.clear()
        assignments = pb.Assignments(complete=True)
        for task in self._source.view.tasks.find("node", self.node_id):
            self._add_task(assignments, task)
        assignments.services.extend(self._source.table.services.values())
        return self._numbered(assignments)

    def _difference(self) -> pb.Assignments | None:
        assignments = pb.Assignments()
        for task_id in self._dirty_tasks:
            task = self._source.view.tasks.get(task_id)
            if task is not None and task.node_id == self.node_id:
                self._add_task(assignments, task)
            elif self._told.pop(task_id, None) is not None:
                assignments.removed_task_ids.append(task_id)
                self._release_files(assignments, task_id)
        for service_id in self._dirty_services:
            entry = self._source.table.services.get(service_id)
            if entry is None:
                assignments.removed_service_ids.append(service_id)
            else:
                assignments.services.append(entry)
        self._dirty_tasks.clear()
        self._dirty_services.clear()
        return self._numbered(assignments) if assignments.ListFields() else None

    def _numbered(self, assignments: pb.Assignments) -> pb.Assignments:
        self._version += 1
        assignments.version = self._version
        self._revision_of_version[self._version] = self._source.table.revision
        return assignments

    def _add_task(self, assignments: pb.Assignments, task: pb.Task) -> None:
        if task.status.state < pb.TASK_STATE_ASSIGNED:
            return
        has_ended = taskstate.is_terminal(task.status.state)
        if has_ended:
            self._release_files(assignments, task.id)
        desired = self._source.told_desired_state(task)
        if self._told.get(task.id) == desired:
            return
        self._told[task.id] = desired
        told = assignments.tasks.add()
        told.CopyFrom(task)
        told.desired_state = desired
        if not has_ended:
            self._add_files(assignments, task)

    def _add_files(self, assignments: pb.Assignments, task: pb.Task) -> None:
        """The secrets and configs of a task that the agent does not have yet."""
        view = self._source.view
        container = task.spec.container_spec
        for secret_id in dict.fromkeys(reference.secret_id for reference in container.secrets):
            users = self._secret_users.setdefault(secret_id, set())
            secret = view.secrets.get(secret_id)
            if not users and secret is not None:
                assignments.secrets.append(secret)
            users.add(task.id)
        for config_id in dict.fromkeys(reference.config_id for reference in container.configs):
            users = self._config_users.setdefault(config_id, set())
            config = view.configs.get(config_id)
            if not users and config is not None:
                assignments.configs.append(config)
            users.add(task.id)

    def _release_files(self, assignments: pb.Assignments, task_id: str) -> None:
        assignments.removed_secret_ids.extend(_without_user(self._secret_users, task_id))
        assignments.removed_config_ids.extend(_without_user(self._config_users, task_id))


def _without_user(users_of: dict[str, set[str]], task_id: str) -> list[str]:
    """Takes a task off every list of users; returns what nobody uses any more."""
    unused = []
    for object_id, users in users_of.items():
        users.discard(task_id)
        if not users:
            unused.append(object_id)
    for object_id in unused:
        del users_of[object_id]
    return unused
