"""Tasks and resources for the tests of the runtimes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from swarmlet.api import pb
from swarmlet.runtime.base import TaskResources

RESOURCES = TaskResources(node_id="node1", node_hostname="host1")


def no_progress(_text: str) -> None:
    """A progress callback for those who do not look."""


def make_task(task_id: str = "task1", *command: str, slot: int = 1, **container: object) -> pb.Task:
    """A task of service `web` that runs `command`; `container` are fields of its ContainerSpec."""
    task = pb.Task(
        id=task_id, service_id="service1", service_name="web", slot=slot, node_id="node1", name=f"web.{slot}"
    )
    task.spec.container_spec.CopyFrom(
        pb.ContainerSpec(image="demo:1", args=list(command), **container)  # type: ignore[arg-type]
    )
    return task


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for what real programs do in their own time."""
    async with asyncio.timeout(30):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)
