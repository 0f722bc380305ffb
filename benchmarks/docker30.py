"""30 containers by Swarmlet and by `docker service create`, in turns, on the same engine.

The engine that answers must be in no swarm: for the time of the measurement it is made a
swarm of one. Where none answers one is started, with root.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any
from uuid import uuid4

from docker.types import RestartPolicy, ServiceMode

from benchmarks.harness import Board, Report, any_engine, create, fresh_lab, remove, run, service_spec
from swarmlet.lab import containers, example
from swarmlet.lab.cluster import Lab

COMMAND = ("sleep", "3600")
LOOK_SECONDS = 0.02
# Beside the lab's managers, which have addresses of their own.
_SWARM_BRIDGE = "docker_gwbridge"
SWARM_ADDRESS = "127.0.0.1:23777"


@contextmanager
def engine_as_swarm() -> Iterator[Any]:
    with containers.engine() as client:
        had_bridge = bool(client.networks.list(names=[_SWARM_BRIDGE]))
        client.swarm.init(advertise_addr=SWARM_ADDRESS, listen_addr=SWARM_ADDRESS)
        try:
            yield client
        finally:
            client.swarm.leave(force=True)
            if not had_bridge:
                # A swarm makes it on its first day and leaves it behind.
                client.networks.get(_SWARM_BRIDGE).remove()


async def until_in_thread(true: Callable[[], bool]) -> None:
    """Asks the engine until the answer is yes."""
    while True:
        if await asyncio.to_thread(true):
            return
        await asyncio.sleep(LOOK_SECONDS)


async def by_docker(client: Any, image: str, replicas: int) -> float:
    """Seconds from the call of the engine's API until it says that all tasks run."""

    def make() -> Any:
        return client.services.create(
            image, list(COMMAND), mode=ServiceMode("replicated", replicas), restart_policy=RestartPolicy()
        )

    def running(service: Any) -> int:
        return sum(task["Status"]["State"] == "running" for task in service.tasks())

    began = monotonic()
    service = await asyncio.to_thread(make)
    await until_in_thread(lambda: running(service) >= replicas)
    took = monotonic() - began
    await asyncio.to_thread(service.remove)
    await until_in_thread(lambda: not _containers_of(client, f"com.docker.swarm.service.id={service.id}"))
    return took


async def by_swarmlet(lab: Lab, board: Board, client: Any, image: str, replicas: int) -> float:
    spec = service_spec(f"sleepers-{uuid4().hex[:6]}", [image, *COMMAND], replicas=replicas)
    began = monotonic()
    service_id = await create(lab, spec)
    took = await board.until(lambda: len(board.running(service_id)) >= replicas) - began
    await remove(lab, service_id)
    owners = [f"{containers.OWNER_LABEL}={node.node_id}" for node in lab.layout.nodes]
    for owner in owners:
        await until_in_thread(lambda owner=owner: not _containers_of(client, owner))  # type: ignore[misc]
    return took


def _containers_of(client: Any, label: str) -> list[Any]:
    """Ids suffice: asking about each would race with its removal."""
    return list(client.api.containers(all=True, filters={"label": label}))


async def measure(options: argparse.Namespace, report: Report) -> None:
    with any_engine() as missing:
        if missing:
            raise SystemExit(f"cannot measure: {missing}")
        await _compare(options, report)


async def _compare(options: argparse.Namespace, report: Report) -> None:
    image = await asyncio.to_thread(example.image)
    ours: list[float] = []
    theirs: list[float] = []
    with engine_as_swarm() as client:
        async with fresh_lab(managers=options.managers, runtime="docker") as lab, Board(lab) as board:
            # One uncounted round each: caches, and the engine's own networks.
            for number in range(options.rounds + 1):
                docker = await by_docker(client, image, options.replicas)
                swarmlet = await by_swarmlet(lab, board, client, image, options.replicas)
                if number:
                    theirs.append(docker)
                    ours.append(swarmlet)
    report.spread(f"{options.replicas} replicas by docker service create", theirs)
    report.spread(f"{options.replicas} replicas by swarmlet", ours)
    report.figure("ratio of the medians", statistics.median(ours) / statistics.median(theirs), at_most=1.2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docker30", description=__doc__)
    parser.add_argument("--replicas", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--managers", type=int, default=1, help="managers of the lab; the engine is a swarm of one"
    )
    return run("docker30", measure, parser)


if __name__ == "__main__":
    raise SystemExit(main())
