"""One task of the docker runtime, as the agent drives it.

Made by `docker.DockerRuntime`, which knows the containers. Decides when to pull, to
create, to start and to stop, and what an end means.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import docker.errors
import structlog

from swarmlet.api import pb
from swarmlet.runtime.base import LogRecord, TaskFailed, TaskRejected, TaskResources
from swarmlet.runtime.docker_config import (
    OWNER_LABEL,
    TASK_ID_LABEL,
    Json,
    container_config,
    endpoint_addresses,
    port_status,
)
from swarmlet.runtime.docker_engine import EngineUnavailable
from swarmlet.runtime.ending import first_of, raise_for_exit
from swarmlet.runtime.templates import task_name

if TYPE_CHECKING:
    from swarmlet.runtime.docker import Container, DockerRuntime

T = TypeVar("T")
_log = structlog.get_logger(__name__)
_DEFAULT_GRACE_SECONDS = 10.0
_KILL_SECONDS = 10.0
"""How long a killed container may take to end before it is looked at and killed again."""


class DockerController:
    """Implements `base.TaskController`."""

    def __init__(
        self,
        runtime: DockerRuntime,
        task: pb.Task,
        resources: TaskResources,
        progress: Callable[[str], None],
    ) -> None:
        self._runtime = runtime
        self._task = task
        self._resources = replace(
            resources,
            node_id=resources.node_id or runtime.owner,
            node_hostname=resources.node_hostname or runtime.hostname,
        )
        self._progress = progress
        self._stopping = asyncio.Event()
        self._acting: asyncio.Task[Any] | None = None

    async def prepare(self) -> None:
        with _engine_errors(TaskFailed):
            await self._runtime.ready()
            container = self._runtime.container(self._task.id)
            if container is not None:
                container.saw(await self._runtime.engine.inspect(container.id))
                return
        with _engine_errors(TaskRejected):
            await self._create()

    async def start(self) -> None:
        container = await self._known()
        if self._stopping.is_set():
            raise TaskFailed("task: stopped before it was started")
        if not container.is_running and not container.ended.is_set():
            with _engine_errors(TaskFailed, "starting container failed: "):
                await self._act(self._runtime.engine.call(lambda client: client.start(container.id)))
        with _engine_errors(TaskFailed):
            # For the pid, the address and the published ports.
            container.saw(await self._runtime.engine.inspect(container.id))
        if container.health:
            await self._until_healthy(container)

    async def wait(self) -> None:
        container = await self._known()
        await first_of(container.ended.wait(), container.unhealthy.wait())
        if container.unhealthy.is_set() and not container.ended.is_set():
            await self._fail_unhealthy(container)
        raise_for_exit(container.exit_code)

    async def shutdown(self) -> None:
        container = await self._told_to_end()
        if container is None:
            return
        spec = self._task.spec.container_spec
        grace = spec.stop_grace_period_ns / 1e9 if spec.HasField("stop_grace_period_ns") else None
        signal = spec.stop_signal or container.inspected.get("Config", {}).get("StopSignal") or "SIGTERM"
        if await self._kill(container, signal):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    container.ended.wait(), _DEFAULT_GRACE_SECONDS if grace is None else grace
                )
        await self._kill_for_good(container)

    async def terminate(self) -> None:
        container = await self._told_to_end()
        if container is not None:
            await self._kill_for_good(container)

    async def remove(self) -> None:
        await self._no_more_starts()
        with _engine_errors(TaskFailed):
            await self._runtime.ready()
            await self._runtime.remove(self._task.id)

    def container_status(self) -> pb.ContainerStatus | None:
        container = self._runtime.container(self._task.id)
        if container is None:
            return None
        return pb.ContainerStatus(
            container_id=container.id, pid=container.pid, exit_code=container.exit_code or 0
        )

    def endpoint_addresses(self) -> Sequence[pb.EndpointAddress]:
        container = self._runtime.container(self._task.id)
        return endpoint_addresses(self._task, container.inspected) if container else []

    def port_status(self) -> pb.PortStatus | None:
        container = self._runtime.container(self._task.id)
        return port_status(self._task, container.inspected) if container else None

    async def logs(self, options: pb.LogOptions) -> AsyncIterator[LogRecord]:
        with _engine_errors(TaskFailed):
            await self._runtime.ready()
        container = self._runtime.container(self._task.id)
        if container is None:
            return
        tty = self._task.spec.container_spec.tty
        async with contextlib.aclosing(self._runtime.engine.logs(container.id, options, tty=tty)) as records:
            async for record in records:
                yield record

    async def _create(self) -> None:
        files = await self._runtime.in_thread(lambda: self._runtime.files.create(self._task, self._resources))
        config = container_config(self._task, self._resources, owner=self._runtime.owner, files=files)
        try:
            await self._act(self._created(config))
        except docker.errors.ImageNotFound:
            await self._pull(config["Image"])
            await self._act(self._created(config))

    async def _created(self, config: Json) -> None:
        name = task_name(self._task)

        def create(client: docker.APIClient) -> Any:
            return client.create_container_from_config(config, name)  # type: ignore[no-untyped-call]

        try:
            container_id = str((await self._runtime.engine.call(create))["Id"])
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise
            container_id = await self._adopted_by_name(name, error)
        self._runtime.keep(self._task.id, container_id)

    async def _adopted_by_name(self, name: str, conflict: docker.errors.APIError) -> str:
        """A create whose answer was lost leaves a container that is ours; another's is a conflict."""
        found = await self._runtime.engine.inspect(name)
        labels = found["Config"]["Labels"] or {} if found else {}
        ours = {OWNER_LABEL: self._runtime.owner, TASK_ID_LABEL: self._task.id}
        if found is None or not ours.items() <= labels.items():
            raise conflict
        return str(found["Id"])

    async def _pull(self, image: str) -> None:
        """Once for all tasks that wait for the same image."""
        lock = self._runtime.pull_locks.setdefault(image, asyncio.Lock())
        async with lock:
            if await self._has_image(image):
                return
            self._progress(f"pulling image {image}")
            try:
                await self._runtime.engine.pull(image, self._task.spec.container_spec.pull_auth)
            except (docker.errors.APIError, ValueError) as error:
                reason = _explanation(error)
                _log.warning("cannot pull an image", image=image, reason=reason)
                raise TaskRejected(f"No such image: {image} ({reason})") from error

    async def _has_image(self, image: str) -> bool:
        def inspect(client: docker.APIClient) -> None:
            client.inspect_image(image)  # type: ignore[no-untyped-call]

        try:
            await self._runtime.engine.call(inspect)
        except docker.errors.ImageNotFound:
            return False
        return True

    async def _act(self, action: Coroutine[Any, Any, T]) -> T:
        """An action that goes on in its thread when the caller gives up; the end of the task waits for it."""
        acting = asyncio.create_task(action)
        self._acting = acting
        try:
            return await asyncio.shield(acting)
        except asyncio.CancelledError:
            acting.add_done_callback(_look_at)
            raise

    async def _no_more_starts(self) -> None:
        self._stopping.set()
        if self._acting is not None:
            await asyncio.wait([self._acting])

    async def _known(self) -> Container:
        with _engine_errors(TaskFailed):
            await self._runtime.ready()
        container = self._runtime.container(self._task.id)
        if container is None:
            raise TaskFailed(f"No such container: {task_name(self._task)}")
        return container

    async def _told_to_end(self) -> Container | None:
        """The container if it may be running; from now on it is not started any more."""
        await self._no_more_starts()
        with _engine_errors(TaskFailed):
            await self._runtime.ready()
            container = self._runtime.container(self._task.id)
            if container is None or container.ended.is_set():
                return None
            # A start that failed on the way may have worked: only the engine knows.
            container.saw(await self._runtime.engine.inspect(container.id))
        return container if container.is_running else None

    async def _kill(self, container: Container, signal: str) -> bool:
        """False when it does not run any more."""
        with _engine_errors(TaskFailed):
            try:
                await self._runtime.engine.call(lambda client: client.kill(container.id, signal=signal))
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):
                    raise
                container.saw(await self._runtime.engine.inspect(container.id))
                return container.is_running
        return True

    async def _kill_for_good(self, container: Container) -> None:
        while not container.ended.is_set() and await self._kill(container, "SIGKILL"):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(container.ended.wait(), _KILL_SECONDS)

    async def _until_healthy(self, container: Container) -> None:
        await first_of(container.health_known.wait(), container.ended.wait(), self._stopping.wait())
        if container.ended.is_set():
            raise_for_exit(container.exit_code)
        elif self._stopping.is_set():
            raise TaskFailed("task: stopped before it was healthy")
        elif container.unhealthy.is_set():
            await self._fail_unhealthy(container)

    async def _fail_unhealthy(self, container: Container) -> None:
        _log.warning("task is unhealthy and is stopped", task_id=self._task.id)
        await self.shutdown()
        raise TaskFailed("task: unhealthy", container.exit_code)


@contextlib.contextmanager
def _engine_errors(refused: type[TaskRejected] | type[TaskFailed], prefix: str = "") -> Iterator[None]:
    """What the engine says, as an error of the task; `refused` is for what it calls our mistake."""
    try:
        yield
    except EngineUnavailable as error:
        raise TaskFailed(str(error)) from error
    except docker.errors.APIError as error:
        kind = TaskFailed if error.is_server_error() else refused
        raise kind(prefix + _explanation(error)) from error
    except OSError as error:
        raise TaskFailed(f"cannot write the task's files: {error}") from error


def _explanation(error: Exception) -> str:
    # Without the SDK's "400 Client Error for http+docker://...".
    explanation = error.explanation if isinstance(error, docker.errors.APIError) else None
    return str(explanation or error)


def _look_at(task: asyncio.Task[Any]) -> None:
    """Nobody waits for its outcome any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.info("what was given up failed", error=str(error))
