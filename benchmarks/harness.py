"""What every measurement needs: a lab of its own, a view that waits for events, and a report.

A measurement is a coroutine `measure(options, report)`; `run` gives it the command
line, prints what it found and makes the exit status say whether all targets were met.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TypeVar
from uuid import uuid4

from rich.console import Console
from rich.table import Table

from swarmlet.api import pb
from swarmlet.api.errors import FailedPrecondition, SwarmletError, Unavailable, UnknownOutcome
from swarmlet.api.taskstate import is_running
from swarmlet.lab import cluster, containers, example
from swarmlet.lab.client import NodeClient, told
from swarmlet.lab.cluster import Lab
from tests.engine.engine import EngineMissing, start_engine

Object = TypeVar("Object")
Answer = TypeVar("Answer")

CALL_SECONDS_MAX = 10.0
RETRY_SECONDS = 0.02
WIDTH = 110
"""Of the report, in a terminal or not."""


@dataclass
class Report:
    """Figures under names, and the targets they are held to."""

    name: str
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    figures: dict[str, float | int | list[float]] = field(default_factory=dict)
    met: bool = True

    def figure(
        self,
        what: str,
        value: float,
        *,
        unit: str = "",
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        self.figures[what] = value
        bound = at_most if at_most is not None else at_least
        good = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
        target = (
            f"{'<=' if at_most is not None else '>='} {bound:g} {unit}".strip() if bound is not None else ""
        )
        verdict = ("met" if good else "MISSED") if bound is not None else ""
        self.met = self.met and good
        shown = str(value) if isinstance(value, int) else f"{value:.3f}"
        self.rows.append((what, f"{shown} {unit}".strip(), target, verdict))

    def spread(
        self, what: str, values: Sequence[float], *, p50: float | None = None, worst: float | None = None
    ) -> None:
        """Median and maximum of some times in seconds, with what each may be at most."""
        self.figures[f"{what}, all"] = [round(value, 4) for value in values]
        self.figure(f"{what}, p50 of {len(values)}", statistics.median(values), unit="s", at_most=p50)
        self.figure(f"{what}, max", max(values), unit="s", at_most=worst)

    def show(self) -> None:
        table = Table(title=self.name, title_justify="left")
        for heading in ("what", "measured", "target", ""):
            table.add_column(heading)
        for row in self.rows:
            table.add_row(*row)
        Console(width=WIDTH).print(table)


def run(
    name: str,
    measure: Callable[[argparse.Namespace, Report], Awaitable[None]],
    parser: argparse.ArgumentParser | None = None,
) -> int:
    """Runs one measurement from the command line; 0 when every target was met."""
    parser = parser or argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args()
    report = Report(name)

    async def measured() -> None:
        await measure(options, report)

    asyncio.run(measured())
    report.show()
    if options.json is not None:
        options.json.write_text(
            json.dumps({"name": name, "met": report.met, "figures": report.figures}, indent=1)
        )
    return 0 if report.met else 1


@asynccontextmanager
async def fresh_lab(*, managers: int = 3, workers: int = 0, runtime: str = "process") -> AsyncIterator[Lab]:
    """A lab in a temporary directory; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="swarmlet-bench-", dir="/tmp") as parent:
        directory = Path(parent) / "lab"
        made = await cluster.up(directory, managers=managers, workers=workers, runtime=runtime)
        try:
            yield made
        finally:
            await asyncio.to_thread(cluster.down, directory)


@contextmanager
def any_engine() -> Iterator[str]:
    """Why there is no engine to measure with, or "" while there is: the machine's, or one of our own."""
    if containers.engine_answers():
        yield ""
        return
    with contextlib.ExitStack() as stack:
        parent = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swl-", dir="/tmp")))
        (parent / "engine").mkdir()
        try:
            engine = stack.enter_context(start_engine(parent / "engine"))
        except EngineMissing as reason:
            yield str(reason)
            return
        os.environ["DOCKER_HOST"] = engine.url
        stack.callback(os.environ.pop, "DOCKER_HOST")
        yield ""


class Board:
    """The cluster's tasks and nodes as one manager tells them, kept current by its watch.

    Follows another manager of the lab when the one it listens to goes.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.tasks: dict[str, pb.Task] = {}
        self.nodes: dict[str, pb.Node] = {}
        self.services: dict[str, pb.Service] = {}
        self._changed = asyncio.Condition()
        self._listener: asyncio.Task[None] | None = None
        self.avoid = ""
        """A node about to be killed: listen to another."""

    async def __aenter__(self) -> Board:
        self._listener = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)

    async def listen_without(self, name: str) -> None:
        """Listens to another manager than `name` from now on."""
        self.avoid = name
        await self.__aexit__()
        await self.__aenter__()

    async def until(self, true: Callable[[], bool], *, timeout: float = 60.0) -> float:
        """Waits for `true` to hold of what is known; returns when it did, by the monotonic clock."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(true)
        return monotonic()

    def running(self, service_id: str) -> list[pb.Task]:
        return [task for task in self.tasks.values() if task.service_id == service_id and is_running(task)]

    async def _listen(self) -> None:
        while True:
            for node in self.lab.live_managers():
                if node.name == self.avoid:
                    continue
                with contextlib.suppress(SwarmletError):
                    async with NodeClient(node.socket) as client:
                        async for response in client.watch("task", "node", "service"):
                            await self._take(response)
            await asyncio.sleep(RETRY_SECONDS)

    async def _take(self, response: pb.WatchResponse) -> None:
        async with self._changed:
            if response.snapshot:
                for table in (self.tasks, self.nodes, self.services):
                    table.clear()
            for event in response.events:
                gone = event.kind == pb.CHANGE_KIND_DELETE
                match event.object.WhichOneof("object"):
                    case "task":
                        _put(self.tasks, event.object.task.id, event.object.task, gone)
                    case "node":
                        _put(self.nodes, event.object.node.id, event.object.node, gone)
                    case "service":
                        _put(self.services, event.object.service.id, event.object.service, gone)
            self._changed.notify_all()


def _put(table: dict[str, Object], key: str, item: Object, gone: bool) -> None:
    if gone:
        table.pop(key, None)
    else:
        table[key] = item


async def persistently(
    lab: Lab, call: Callable[[NodeClient], Awaitable[Answer]], *, timeout: float = 30.0
) -> Answer:
    """The answer of any live manager, asked again while the cluster has none. Raises the last error."""
    last: SwarmletError | None = None
    deadline = monotonic() + timeout
    while monotonic() < deadline:
        for node in lab.live_managers():
            try:
                async with NodeClient(node.socket) as client:
                    return await call(client)
            except (Unavailable, UnknownOutcome, FailedPrecondition) as error:
                last = error
        await asyncio.sleep(RETRY_SECONDS)
    raise last or Unavailable("no manager of the lab is alive")


def service_spec(
    name: str,
    image_and_command: Sequence[str],
    *,
    replicas: int,
    ports: Sequence[tuple[int, int]] = (),
    parallelism: int = 1,
    monitor_seconds: float = 1.0,
    restart_delay_seconds: float = 0.0,
) -> pb.ServiceSpec:
    """A replicated service; `ports` are (published, target), the first of the words the image."""
    spec = pb.ServiceSpec(name=name)
    container = spec.task_template.container_spec
    container.image = image_and_command[0]
    container.args.extend(image_and_command[1:])
    container.stop_grace_period_ns = 2 * 10**9
    spec.task_template.restart_policy.delay_ns = round(restart_delay_seconds * 1e9)
    spec.mode.replicated.replicas = replicas
    spec.update_config.parallelism = parallelism
    spec.update_config.monitor_ns = round(monitor_seconds * 1e9)
    for published, target in ports:
        spec.endpoint_spec.ports.add(published_port=published, target_port=target)
    return spec


async def create(lab: Lab, spec: pb.ServiceSpec) -> str:
    """Creates a service; returns its id."""
    request = pb.CreateServiceRequest(operation_id=f"bench-{uuid4().hex}", spec=spec)

    async def call(client: NodeClient) -> str:
        return (await told(client.control.CreateService(request, timeout=CALL_SECONDS_MAX))).service_id

    return await persistently(lab, call)


async def change(lab: Lab, service_id: str, edit: Callable[[pb.ServiceSpec], None]) -> None:
    """Reads a service, edits its spec, writes it back."""
    operation = f"bench-{uuid4().hex}"

    async def call(client: NodeClient) -> None:
        got = await told(client.control.GetService(pb.GetServiceRequest(reference=service_id), timeout=5.0))
        spec = got.service.spec
        edit(spec)
        request = pb.UpdateServiceRequest(
            operation_id=operation, service_id=service_id, version=got.service.version.index, spec=spec
        )
        await told(client.control.UpdateService(request, timeout=CALL_SECONDS_MAX))

    await persistently(lab, call)


async def remove(lab: Lab, service_id: str) -> None:
    request = pb.RemoveServiceRequest(operation_id=f"bench-{uuid4().hex}", service_id=service_id)

    async def call(client: NodeClient) -> None:
        await told(client.control.RemoveService(request, timeout=CALL_SECONDS_MAX))

    await persistently(lab, call)


async def until(true: Callable[[], bool], *, look_seconds: float, timeout: float = 60.0) -> None:
    """Looks until something is true that announces itself by no event."""
    async with asyncio.timeout(timeout):
        while True:
            if true():
                return
            await asyncio.sleep(look_seconds)


def web_urls(lab: Lab) -> list[str]:
    return [f"http://{node.address}:{example.PUBLISHED_PORT}/" for node in lab.layout.nodes]
