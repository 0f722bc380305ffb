"""The product's story, run for real: a cluster keeps its service up while its nodes are killed.

Every command shown is run as shown. What the story claims is measured and checked on
the way; a claim that does not hold is shown and makes the exit status 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

from swarmlet.api import pb
from swarmlet.api.errors import FailedPrecondition, SwarmletError
from swarmlet.api.taskstate import is_running
from swarmlet.lab import cluster, example, processes
from swarmlet.lab import layout as layouts
from swarmlet.lab.client import NodeClient, told
from swarmlet.lab.cluster import Lab
from swarmlet.lab.load import Load, fetch
from swarmlet.lab.show import Show

SERVICE = "web"
REQUESTS_PER_SECOND = 100
CONVERGE_SECONDS_MAX = 60.0
WRITE_SECONDS_MAX = 15.0
_LOOK_SECONDS = 0.05
_PASSING = re.compile(r"overall progress: |\d+/\d+: |verify: Waiting ")


async def run(directory: Path | None, *, runtime: str, keep: bool) -> int:
    """Runs the story in a new lab; returns the exit status. Raises what keeps the lab from being made."""
    place = directory or layouts.default_directory()
    began = monotonic()
    show = Show()
    show.title("swarmlet: three managers, one service, real failures")
    runtime = await _usable_runtime(runtime, show)
    chosen = [] if directory is None else ["--dir", str(directory)]
    try:
        story = Story(show, await _up(show, place, runtime, chosen), chosen)
        await story.tell()
    except SwarmletError as error:
        if not layouts.exists(place):
            raise
        show.holds("the story went to its end", False, error.message)
    finally:
        if not keep:
            await _down(show, place, chosen)
    if keep:
        show.say(
            f"the lab is still up in {place}; end it with: {shlex.join(['swarmlet', 'lab', 'down', *chosen])}"
        )
    show.end(monotonic() - began)
    return 1 if show.broken else 0


async def _usable_runtime(wanted: str, show: Show) -> str:
    """The docker runtime only where it also has an image to run."""
    runtime = cluster.chosen_runtime(wanted)
    if runtime == "docker":
        try:
            await asyncio.to_thread(example.image)
        except FailedPrecondition as error:
            if wanted == "docker":
                raise
            show.say(f"{error.message}; running programs of this machine instead")
            return "process"
    return runtime


async def _up(show: Show, place: Path, runtime: str, chosen: list[str]) -> Lab:
    show.chapter("Three daemons, each on its own loopback address, become one cluster")
    show.command(["swarmlet", "lab", "up", "--managers", "3", "--runtime", runtime, *chosen])
    began = monotonic()
    lab = await cluster.up(place, managers=3, workers=0, runtime=runtime)
    show.time("cluster of three managers ready", monotonic() - began)
    show.holds("every node is Ready, every manager Reachable", True)
    return lab


async def _down(show: Show, place: Path, chosen: list[str]) -> None:
    if not layouts.exists(place):
        return
    show.chapter("Down: nothing stays behind")
    show.command(["swarmlet", "lab", "down", *chosen])
    await asyncio.to_thread(cluster.down, place)
    left = cluster.traces(place)
    show.holds("no process, socket, rule or file of it is left", not left, ", ".join(left))


class Story:
    def __init__(self, show: Show, lab: Lab, chosen: list[str]) -> None:
        self._show = show
        self._lab = lab
        self._chosen = chosen
        self._names = [node.name for node in lab.layout.nodes]
        self._load = Load([self._url(name) for name in self._names], rate=REQUESTS_PER_SECOND)

    async def tell(self) -> None:
        await self._swarmlet("node", "ls")
        await self._create()
        self._load.start()
        try:
            await self._scale()
            await self._update()
            await self._kill_leader()
            await self._kill_worker()
            await self._survived()
        finally:
            await self._load.stop()

    # ---- chapters --------------------------------------------------------

    async def _create(self) -> None:
        self._show.chapter("A service with three replicas, published on every node")
        image_and_command = await asyncio.to_thread(
            example.prepare, self._lab.layout.runtime, self._lab.layout.directory
        )
        ports = f"{example.PUBLISHED_PORT}:{example.TARGET_PORT}"
        began = monotonic()
        running = asyncio.create_task(self._await_replicas(3))
        await self._swarmlet(
            *("service", "create", "--name", SERVICE, "--replicas", "3", "--publish", ports),
            *("--env", "VERSION=1", "--restart-delay", "0s", "--update-parallelism", "2"),
            *("--update-monitor", "1s", "--stop-grace-period", "2s", *image_and_command),
        )
        self._show.time("three replicas running", await running - began)
        await self._swarmlet("service", "ps", SERVICE)
        for name in self._names:
            await self._curl(name, "version 1")

    async def _scale(self) -> None:
        self._show.chapter(
            f"Scale to six; from here on {REQUESTS_PER_SECOND} requests a second, to every node in turn"
        )
        began = monotonic()
        running = asyncio.create_task(self._await_replicas(6))
        await self._swarmlet("service", "scale", f"{SERVICE}=6")
        self._show.time("scaled from 3 to 6", await running - began)

    async def _update(self) -> None:
        self._show.chapter("Rolling update, two tasks at a time, under that load")
        sent, failed, began = self._load.outcome.total, self._load.outcome.failed, monotonic()
        await self._swarmlet("service", "update", "--env-add", "VERSION=2", SERVICE)
        await self._until(self._is_updated, "the end of the update")
        self._show.time("rolling update of 6, two at a time, 1 s monitor", monotonic() - began)
        sent, failed = self._load.outcome.total - sent, self._load.outcome.failed - failed
        self._show.figure("requests during the update / failed", f"{sent} / {failed}")
        self._show.holds(
            f"{sent} requests during the update, {failed} failed", failed == 0, self._load.outcome.reasons()
        )
        await self._curl(self._names[0], "version 2")

    async def _kill_leader(self) -> None:
        leader = await self._lab.leader()
        self._show.chapter(f"Power failure of the leader, {leader}: its daemon and its tasks die at once")
        self._load.leave(self._url(leader))
        survivors = [name for name in self._names if name != leader]
        killing = asyncio.create_task(self._kill(leader))
        died = await self._death(leader)
        write = await self._first_write(survivors, died)
        await killing
        self._show.time("leader killed: next write accepted", write)
        self._show.holds(
            f"the cluster accepts writes again after {write:.2f} s", write <= 2.5, "more than 2.5 s"
        )
        await self._heals(leader, died, "leader killed")
        await self._swarmlet("lab", "start", leader, *self._chosen)
        await self._lab.wait_ready([leader])
        self._load.enter(self._url(leader))

    async def _kill_worker(self) -> None:
        leader = await self._lab.leader()
        loads = {name: await self._tasks_on(name) for name in self._names if name != leader}
        victim = max(loads, key=lambda name: loads[name])
        self._show.chapter(f"Power failure of {victim}, which runs {loads[victim]} of the tasks")
        self._load.leave(self._url(victim))
        killing = asyncio.create_task(self._kill(victim))
        died = await self._death(victim)
        await killing
        await self._heals(victim, died, "node killed")

    async def _survived(self) -> None:
        self._show.chapter("What survived")
        await self._swarmlet("service", "ls")
        await self._swarmlet("lab", "status", *self._chosen)
        outcome = await self._load.stop()
        answered = outcome.ok / max(1, outcome.total)
        self._show.figure("requests in all / failed", f"{outcome.total} / {outcome.failed}")
        self._show.figure(
            "latency p50 / p99", f"{outcome.latency(0.5) * 1e3:.0f} / {outcome.latency(0.99) * 1e3:.0f} ms"
        )
        self._show.holds(
            f"{outcome.ok} of {outcome.total} requests were answered through two power failures",
            answered >= 0.98,
            outcome.reasons(),
        )
        if outcome.failed:
            self._show.say(f"the others were with the nodes when they died: {outcome.reasons()}")

    async def _kill(self, name: str) -> None:
        await self._swarmlet("lab", "kill", name, *self._chosen)

    async def _death(self, name: str) -> float:
        """When, by the clock, the node's daemon died: the command takes its time before and after."""
        for pid in self._lab.daemon_pids(name):
            await processes.gone(pid)
        return monotonic()

    async def _heals(self, dead: str, began: float, event: str) -> None:
        """Watches a dead node's tasks come back elsewhere."""
        await self._lab.wait_state(dead, pb.NODE_STATE_DOWN, timeout=CONVERGE_SECONDS_MAX)
        down = monotonic() - began
        back = await self._await_replicas(6, without=dead) - began
        self._show.time(f"{event}: seen as Down", down)
        self._show.time(f"{event}: all replicas running elsewhere", back)
        self._show.holds(
            f"{dead} is Down after {down:.1f} s, 6 of 6 tasks run elsewhere after {back:.1f} s", True
        )

    # ---- looking and doing -----------------------------------------------

    async def _curl(self, name: str, expected: str) -> None:
        """One request, made here: not every machine has curl."""
        self._show.command(["curl", self._url(name)])
        outcome = await fetch(self._url(name))
        said = "\n".join(outcome.bodies)
        self._show.output(said)
        self._show.holds(f"{name} answers for the service: {expected}", expected in said, outcome.reasons())

    def _url(self, name: str) -> str:
        return f"http://{self._lab.layout.node(name).address}:{example.PUBLISHED_PORT}/"

    async def _swarmlet(self, *words: str) -> None:
        """Runs a command as shown, against a live manager."""
        self._show.command(["swarmlet", *words])
        host = self._lab.live_managers()[0].host
        process = await asyncio.create_subprocess_exec(
            *cluster.program(),
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "SWARMLET_HOST": host},
        )
        output, _ = await process.communicate()
        self._show.output(_without_progress(output.decode(errors="replace")))
        if process.returncode != 0:
            raise FailedPrecondition(
                f"`swarmlet {words[0]} {words[1]}` ended with status {process.returncode}"
            )

    async def _ask_leader(self) -> NodeClient:
        return self._lab.connect(await self._lab.leader())

    async def _tasks(self) -> list[pb.Task]:
        async with await self._ask_leader() as client:
            return await client.tasks(timeout=2.0, service=SERVICE)

    async def _tasks_on(self, name: str) -> int:
        node_id = self._lab.layout.node(name).node_id
        return sum(is_running(task) and task.node_id == node_id for task in await self._tasks())

    async def _await_replicas(self, count: int, without: str = "") -> float:
        """Returns when, by the clock, `count` tasks run, none of them on `without`."""
        dead = self._lab.layout.node(without).node_id if without else ""

        async def enough() -> bool:
            tasks = await self._tasks()
            return sum(is_running(task) and task.node_id != dead for task in tasks) >= count

        await self._until(enough, f"{count} running tasks")
        return monotonic()

    async def _is_updated(self) -> bool:
        async with await self._ask_leader() as client:
            (service,) = [s for s in await client.services(timeout=2.0) if s.spec.name == SERVICE]
        return service.update_status.state == pb.UPDATE_STATE_COMPLETED

    async def _until(self, true: Callable[[], Awaitable[bool]], what: str) -> None:
        try:
            async with asyncio.timeout(CONVERGE_SECONDS_MAX):
                while True:
                    # No leader for the moment, or one that has just died: ask again.
                    with contextlib.suppress(SwarmletError):
                        if await true():
                            return
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise FailedPrecondition(f"waited {CONVERGE_SECONDS_MAX:.0f} s for {what}") from None

    async def _first_write(self, survivors: list[str], began: float) -> float:
        """Seconds from `began` until one of `survivors` accepts a change of the service."""

        async def write(name: str) -> None:
            async with self._lab.connect(name) as client:
                while True:
                    with contextlib.suppress(SwarmletError):
                        got = await told(
                            client.control.GetService(pb.GetServiceRequest(reference=SERVICE), timeout=1.0)
                        )
                        service = got.service
                        service.spec.labels["touched-by"] = name
                        change = pb.UpdateServiceRequest(
                            operation_id=f"demo-{name}-{monotonic()}",
                            service_id=service.id,
                            version=service.version.index,
                            spec=service.spec,
                        )
                        await told(client.control.UpdateService(change, timeout=WRITE_SECONDS_MAX))
                        return
                    await asyncio.sleep(0.01)

        writers = [asyncio.create_task(write(name)) for name in survivors]
        done, late = await asyncio.wait(
            writers, timeout=WRITE_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED
        )
        took = monotonic() - began
        for writer in late:
            writer.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if not done:
            raise FailedPrecondition(f"no write was accepted within {WRITE_SECONDS_MAX:.0f} s")
        return took


def _without_progress(output: str) -> str:
    """What a terminal would show at the end: without the lines that are overwritten there."""
    lines = output.splitlines()
    passing = [line for line in lines if _PASSING.match(line)]
    last = [line for line in passing if line.startswith("overall")][-1:]
    return "\n".join(line for line in lines if line not in passing or line in last)
