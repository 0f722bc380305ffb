"""The whole contract of a runtime on one page.

A `Runtime` belongs to one node and makes a `TaskController` per task. The agent's
task machine calls the controller's methods one at a time, in this order:

    prepare -> start -> wait                      the task runs and ends by itself
    ... -> shutdown (-> terminate) -> remove      it is told to end

`shutdown`, `terminate` and `remove` may come at any moment after creation, also
while another call is being awaited (which then ends or is cancelled). Every method
is idempotent: after a daemon restart the same call is made again for a task that a
predecessor had already brought further, and must find that out by itself (adopt).

Coroutines, on the daemon's event loop; nothing may block it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from swarmlet.api import pb


class TaskRejected(Exception):
    """The node can never run this task (no such image, a mount that is not there): REJECTED."""


class TaskFailed(Exception):
    """The task ended with an error, or could not be started this time: FAILED."""

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class TaskResources:
    """What a task is given beside its own spec: the data of its secrets and configs by id."""

    secrets: Mapping[str, pb.Secret] = field(default_factory=dict)
    configs: Mapping[str, pb.Config] = field(default_factory=dict)
    node_id: str = ""
    node_hostname: str = ""


@dataclass(frozen=True)
class LogRecord:
    timestamp: datetime
    stream: pb.LogStream.ValueType
    data: bytes
    """One line without its newline."""


class TaskController(Protocol):
    """Drives one task. Made for a task that may or may not exist on the node yet."""

    async def prepare(self) -> None:
        """Everything that must be there before the start: image, volumes, the container itself.

        Raises TaskRejected or TaskFailed. Progress worth showing ("pulling image")
        goes to the `progress` callback given at creation.
        """

    async def start(self) -> None:
        """Starts the task and returns when it runs and, if it has a health check, is healthy.

        Returns at once for a task that already runs. Raises TaskFailed when it
        ends or turns unhealthy before that.
        """

    async def wait(self) -> None:
        """Returns when the task has ended with exit code 0; raises TaskFailed otherwise.

        Also raises TaskFailed when a running task turns unhealthy, after having
        stopped it.
        """

    async def shutdown(self) -> None:
        """Sends the stop signal, waits for the stop grace period, kills; returns when it has ended."""

    async def terminate(self) -> None:
        """Kills at once; returns when it has ended."""

    async def remove(self) -> None:
        """Removes every trace from the node, ending the task first if need be."""

    def container_status(self) -> pb.ContainerStatus | None:
        """Id, pid and (once ended) exit code; None before the task exists."""

    def endpoint_addresses(self) -> Sequence[pb.EndpointAddress]:
        """Where each target port of the running task can be dialled on this host."""

    def port_status(self) -> pb.PortStatus | None:
        """Host-mode ports as they were really published."""

    def logs(self, options: pb.LogOptions) -> AsyncIterator[LogRecord]:
        """Lines so far and, with follow, those to come until the task has ended."""


class Runtime(Protocol):
    name: str
    """"docker", "process" or "simulated"."""

    async def describe(self) -> pb.NodeDescription:
        """Hostname, platform, resources and engine of this node, as they are now."""

    def controller(
        self, task: pb.Task, resources: TaskResources, progress: Callable[[str], None]
    ) -> TaskController: ...

    async def leftovers(self) -> Sequence[str]:
        """Ids of the tasks of which this node still has something: processes, containers, directories.

        Only of this runtime's owner (node or state directory): several daemons may share an engine.
        """

    async def remove_leftover(self, task_id: str) -> None:
        """Stops and removes what `leftovers` named."""

    async def close(self) -> None:
        """Lets go of threads and connections; tasks go on running."""
