"""The runtime of a node with a Docker Engine: a task is a container.

Called by the agent. Containers are named and labelled as Docker swarm's and carry
their owner (the node's id), so several nodes can share an engine. What is known of a
container comes from the engine's events; after every reconnect, each container that
is watched is looked at again, so that nothing is missed. Nothing is polled.

Secrets and configs are files on a memory-backed file system of this host, bound into
the container: the engine must run on this host, and its own data never holds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import docker
import docker.errors
import structlog

from swarmlet.api import pb
from swarmlet.runtime.base import TaskResources
from swarmlet.runtime.docker_config import OWNER_LABEL, TASK_ID_LABEL
from swarmlet.runtime.docker_engine import Engine, EngineUnavailable, engine_answers, engine_url
from swarmlet.runtime.docker_task import DockerController
from swarmlet.runtime.task_files import TaskFiles

__all__ = ["DockerRuntime", "EngineUnavailable", "engine_answers", "engine_url"]

T = TypeVar("T")
_log = structlog.get_logger(__name__)
_VANISHED_EXIT_CODE = 137
_FILE_THREADS = 2


@dataclass
class Container:
    """What is known of one container of ours. It runs once: what has ended stays ended."""

    id: str
    inspected: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    health: str = ""
    """"starting", "healthy" or "unhealthy"; empty without a health check."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """The engine has it no more."""
    health_known: asyncio.Event = field(default_factory=asyncio.Event)
    """Healthy or unhealthy."""
    unhealthy: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int:
        return 0 if self.ended.is_set() else int(self.inspected.get("State", {}).get("Pid", 0))

    @property
    def is_running(self) -> bool:
        return not self.ended.is_set() and bool(self.inspected.get("State", {}).get("Running"))

    def saw(self, inspected: Mapping[str, Any] | None) -> None:
        """Takes in what the engine says of it now; None: it has it no more."""
        if inspected is None:
            self.vanished()
            return
        self.inspected = inspected
        state = inspected["State"]
        if state.get("Health"):
            self.became(state["Health"]["Status"])
        if state["Status"] in ("exited", "dead"):
            self.end(int(state["ExitCode"]))

    def end(self, exit_code: int) -> None:
        if self.exit_code is None:
            self.exit_code = exit_code
        self.ended.set()

    def vanished(self) -> None:
        self.end(_VANISHED_EXIT_CODE)
        self.gone.set()

    def became(self, health: str) -> None:
        if health not in ("starting", "healthy", "unhealthy"):
            return
        self.health = health
        if health != "starting":
            self.health_known.set()
        if health == "unhealthy":
            self.unhealthy.set()


class DockerRuntime:
    """Implements `base.Runtime`. All methods on one event loop.

    `url` is the engine's address; without one DOCKER_HOST, or else the default socket.
    The engine need not answer when the runtime is made: methods raise EngineUnavailable
    (controllers: TaskFailed) until it does. `owner` is the node's id.
    """

    name = "docker"

    def __init__(
        self,
        url: str | None = None,
        *,
        owner: str,
        hostname: str,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        """`now` is not used: every time comes from the engine."""
        self.owner = owner
        self.hostname = hostname
        self.engine = Engine(
            url, labels={OWNER_LABEL: owner}, event=self._on_event, connected=self._on_connected
        )
        self.files = TaskFiles(owner)
        self.pull_locks: dict[str, asyncio.Lock] = {}
        self._containers: dict[str, Container] = {}
        self._listing = asyncio.Lock()
        self._listed = False
        self._file_threads = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="docker-files")
        self._refreshing: asyncio.Task[None] | None = None

    async def describe(self) -> pb.NodeDescription:
        """Raises EngineUnavailable."""
        info = await self.engine.call(lambda client: client.info())
        plugins = [
            pb.PluginDescription(type=kind, name=name)
            for kind, names in sorted((info.get("Plugins") or {}).items())
            for name in names or ()
        ]
        return pb.NodeDescription(
            hostname=self.hostname,
            platform=pb.Platform(architecture=info["Architecture"], os=info["OSType"]),
            resources=pb.Resources(nano_cpus=info["NCPU"] * 10**9, memory_bytes=info["MemTotal"]),
            engine=pb.EngineDescription(
                engine_version=info["ServerVersion"],
                labels=dict(label.partition("=")[::2] for label in info.get("Labels") or ()),
                plugins=plugins,
                runtime=self.name,
            ),
        )

    def controller(
        self, task: pb.Task, resources: TaskResources, progress: Callable[[str], None]
    ) -> DockerController:
        return DockerController(self, task, resources, progress)

    async def leftovers(self) -> Sequence[str]:
        """Raises EngineUnavailable."""
        found = {entry["Labels"].get(TASK_ID_LABEL, "") for entry in await self.engine.containers()}
        return sorted(found - {""})

    async def remove_leftover(self, task_id: str) -> None:
        """Stops the container as it asks to be stopped, then removes it. Raises EngineUnavailable."""
        await self.ready()
        container = self.container(task_id)
        if container is not None and not container.ended.is_set():
            container.saw(await self.engine.inspect(container.id))
            if container.is_running:
                # Blocks a thread for the grace period; there are few orphans, and never at a bad time.
                await self._ignoring_gone(lambda client: client.stop(container.id))
        await self.remove(task_id)

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        await self.engine.close()
        self._file_threads.shutdown(wait=False)

    # What follows is for the controllers of this runtime.

    async def ready(self) -> None:
        """Returns when events come in and the containers of a predecessor are known."""
        async with self._listing:
            await self.engine.watch()
            if self._listed:
                return
            for entry in await self.engine.containers():
                task_id = entry["Labels"].get(TASK_ID_LABEL)
                if task_id:
                    self._containers.setdefault(task_id, Container(entry["Id"]))
            self._listed = True

    def container(self, task_id: str) -> Container | None:
        return self._containers.get(task_id)

    def keep(self, task_id: str, container_id: str) -> Container:
        return self._containers.setdefault(task_id, Container(container_id))

    async def remove(self, task_id: str) -> None:
        """Kills and removes the container, with its anonymous volumes and its files."""
        container = self._containers.get(task_id)
        if container is not None and not container.gone.is_set():
            await self._ignoring_gone(
                lambda client: client.remove_container(container.id, force=True, v=True)
            )
            container.vanished()
        await self.in_thread(lambda: self.files.remove(task_id))
        self._containers.pop(task_id, None)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """For files: not among the calls, which may be waiting for the engine."""
        return await asyncio.get_running_loop().run_in_executor(self._file_threads, function)

    async def _ignoring_gone(self, function: Callable[[docker.APIClient], object]) -> None:
        try:
            await self.engine.call(function)
        except docker.errors.APIError as error:
            # 404: it is gone. 409: somebody else is removing it.
            if error.status_code not in (404, 409):
                raise

    def _on_event(self, event: Mapping[str, Any]) -> None:
        attributes = event["Actor"]["Attributes"]
        container = self._containers.get(attributes.get(TASK_ID_LABEL, ""))
        if container is None or container.id != event["Actor"]["ID"]:
            return
        action = str(event["Action"])
        if action == "die":
            container.end(int(attributes.get("exitCode", _VANISHED_EXIT_CODE)))
        elif action == "destroy":
            container.vanished()
        elif action.startswith("health_status: "):
            container.became(action.removeprefix("health_status: "))

    def _on_connected(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        self._refreshing = asyncio.create_task(self._refresh())

    async def _refresh(self) -> None:
        """Looks at every container that lives, as far as we know: its events may have been missed."""
        living = [container for container in self._containers.values() if not container.ended.is_set()]
        try:
            for container, inspected in zip(
                living, await asyncio.gather(*(self.engine.inspect(c.id) for c in living)), strict=True
            ):
                container.saw(inspected)
        except (EngineUnavailable, docker.errors.APIError) as error:
            # The stream of events breaks too, and its reconnect brings us here again.
            _log.warning("cannot look at containers after a reconnect", error=str(error))
