"""Random histories of a whole cluster: one seed is one schedule of faults and of users' wishes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import structlog

from swarmlet.api import pb
from swarmlet.api.errors import SwarmletError
from tests.sim.clusterworld import ZONES, ClusterWorld, run_in
from tests.sim.ending import broken_promises, differences
from tests.sim.engine import BAD_IMAGES, GOOD_IMAGES
from tests.sim.processes import Process
from tests.sim.users import GaveUp, Promises, User, Watching, a_spec

SETTLE_SECONDS = 60.0
SERVICES_MAX = 4
RECOVERY_SECONDS = 1.0
"""How long after a fault things may still be as if it lasted."""


class ClusterRun:
    """One run and what came of it."""

    def __init__(self, seed: int, *, seconds: float = 40.0) -> None:
        self.seed = seed
        self.rng = random.Random(f"run {seed}")
        self.seconds = seconds
        self.promises = Promises()
        self.violations: list[str] = []
        self.history: list[str] = []
        self.starts = 0
        self.settled_seconds = 0.0

    async def go(self) -> ClusterRun:
        rng = self.rng
        world = ClusterWorld(
            self.seed,
            managers=rng.choice([3, 3, 3, 5]),
            workers=rng.choice([0, 1, 3]),
            delay_seconds=rng.choice([0.001, 0.005, 0.05]),
            sync_seconds=rng.choice([0.0, 0.002, 0.02]),
            snapshot_entries=rng.choice([50, 300, 10_000]),
        )
        with exceptions_are_violations(world):
            try:
                await self._live(world)
            finally:
                self.violations = world.judge.violations
                self.starts = world.judge.starts
                self.history = world.judge.history
                world.close()
        return self

    async def _live(self, world: ClusterWorld) -> None:
        await world.form()
        people = world.process("people")
        watching = [Watching(world, people, random.Random(f"watching {i} {self.seed}")) for i in range(2)]
        for each in watching:
            people.spawn(each.run, "watching")
        end = world.time() + self.seconds
        for number in range(2):
            self._hire(world, people, number, end)
        await random_faults(world, self.rng, self.seconds)
        world.heal()
        world.is_peaceful = True
        await self._repair(world, people)
        began = world.time()
        if not await world.until(
            lambda: not any(differences(world, watching)), SETTLE_SECONDS, poll_seconds=1.0
        ):
            for difference in differences(world, watching):
                world.judge.violation(f"{SETTLE_SECONDS:.0f} s after all was well: {difference}")
        self.settled_seconds = world.time() - began
        for broken in broken_promises(world, self.promises):
            world.judge.violation(broken)

    def _hire(self, world: ClusterWorld, people: Process, number: int, end: float) -> None:
        rng = random.Random(f"user {number} {self.seed}")
        user = User(world, people, self.promises, rng)
        people.spawn(lambda: random_wishes(world, user, number, end), f"user {number}")

    async def _repair(self, world: ClusterWorld, people: Process) -> None:
        """What users asked for that cannot be is asked for no more."""
        user = User(world, people, self.promises, random.Random(f"repair {self.seed}"))

        async def repair() -> None:
            names = [node.id for node in world.judge.truth.view.nodes]
            drained = user.rng.choice([*names, None, None])
            for name in names:
                wanted = pb.NODE_AVAILABILITY_DRAIN if name == drained else pb.NODE_AVAILABILITY_ACTIVE
                await user.insist(lambda name=name, wanted=wanted: user.set_node(name, availability=wanted))
            for number, name in enumerate(n for n in names if n != drained):
                await user.insist(
                    lambda name=name, number=number: user.set_node(name, zone=ZONES[number % len(ZONES)])
                )
            for service in list(world.judge.truth.view.services):
                if is_bad(service):
                    await user.insist(lambda service=service: user.update(service.id, image="ok:repaired"))

        # Users' last wishes may still be on their way.
        await asyncio.sleep(25.0)
        await run_in(people, repair)


def is_bad(service: pb.Service) -> bool:
    return service.spec.task_template.container_spec.image.partition(":")[0] in BAD_IMAGES


# ---- wishes


async def random_wishes(world: ClusterWorld, user: User, number: int, end: float) -> None:
    rng = user.rng
    mine: list[str] = []
    loop = asyncio.get_running_loop()
    made = 0
    while loop.time() < end:
        try:
            if len(mine) < 1 or (len(mine) < SERVICES_MAX and rng.random() < 0.15):
                made += 1
                mine.append(await user.create(random_spec(rng, f"s{number}-{made}")))
            else:
                await random_wish(world, user, mine)
        except (SwarmletError, GaveUp):
            pass
        await asyncio.sleep(rng.expovariate(1 / 2.5))


async def random_wish(world: ClusterWorld, user: User, mine: list[str]) -> None:
    rng = user.rng
    service_id = rng.choice(mine)
    wish = rng.random()
    if wish < 0.3:
        kinds = GOOD_IMAGES if rng.random() < 0.8 else BAD_IMAGES
        await user.update(service_id, image=f"{rng.choice(kinds)}:{rng.randrange(1000)}")
    elif wish < 0.4:
        await user.update(service_id, force=True)
    elif wish < 0.65:
        await user.update(service_id, replicas=rng.randrange(6))
    elif wish < 0.72:
        mine.remove(service_id)
        await user.remove(service_id)
    elif wish < 0.92:
        availability = rng.choice(
            [pb.NODE_AVAILABILITY_ACTIVE] * 3
            + [pb.NODE_AVAILABILITY_PAUSE]
            + [pb.NODE_AVAILABILITY_DRAIN] * 2
        )
        await user.set_node(rng.choice(list(world.hosts)), availability=availability)
    elif wish < 0.98 or "w0" not in world.hosts:
        await user.set_node(rng.choice(list(world.hosts)), zone=rng.choice(ZONES))
    else:
        await user.remove_node("w0")


def random_spec(rng: random.Random, name: str) -> pb.ServiceSpec:
    cpus = rng.choice([0, 0, 0, 1, 2])
    return a_spec(
        name,
        rng.choice([1, 2, 3, 6]),
        image=f"{rng.choice(GOOD_IMAGES)}:0",
        port=rng.choice([None, 0, 0]),
        restart_seconds=rng.choice([0.0, 0.5, 5.0]),
        parallelism=rng.choice([0, 1, 2, 2]),
        delay_seconds=rng.choice([0.0, 0.0, 0.5, 2.0]),
        monitor_seconds=rng.choice([0.0, 0.2, 1.0, 5.0]),
        start_first=rng.random() < 0.4 and not cpus,
        on_failure=rng.choice(
            [pb.FAILURE_ACTION_PAUSE, pb.FAILURE_ACTION_CONTINUE, pb.FAILURE_ACTION_ROLLBACK]
        ),
        constraints=rng.choice([(), (), ("node.labels.zone==a",), ("node.labels.zone!=b",)]),
        is_global=rng.random() < 0.2,
        condition=rng.choice([pb.RESTART_CONDITION_ANY] * 3 + [pb.RESTART_CONDITION_ON_FAILURE]),
        attempts=rng.choice([0, 0, 0, 3]),
        cpus=cpus,
    )


# ---- faults


async def random_faults(world: ClusterWorld, rng: random.Random, seconds: float) -> None:
    end = world.time() + seconds
    rate = rng.choice([0.15, 0.5, 1.0])
    clocks_jump = rng.random() < 0.4
    while True:
        await asyncio.sleep(rng.expovariate(rate))
        if world.time() >= end:
            return
        if clocks_jump and rng.random() < 0.2:
            minutes = rng.choice([-600, -90, -5, -0.2, 0.2, 5, 90, 600])
            world.jump(rng.choice(list(world.hosts)), timedelta(minutes=minutes))
        else:
            random_fault(world, rng)
        world.observe()


def random_fault(world: ClusterWorld, rng: random.Random) -> None:
    """Breaks something, for a while."""
    name = rng.choice(list(world.hosts))
    leader = world.leader()
    if leader is not None and rng.random() < 0.3:
        name = leader.address
    seconds = rng.uniform(0.05, rng.choice([0.3, 1.0, 4.0, 12.0]))
    faults = [
        _crash,
        _crash,
        _lose_power,
        _cut_off,
        _cut_off,
        _divide,
        _cut_one_way,
        _break,
        _pause,
        _slow_down,
    ]
    with world.disturbed_for(seconds + RECOVERY_SECONDS):
        rng.choice(faults)(world, rng, name, seconds)


def _crash(world: ClusterWorld, rng: random.Random, name: str, seconds: float) -> None:
    world.crash(name)
    _later(world, seconds, world.start, name)


def _lose_power(world: ClusterWorld, rng: random.Random, name: str, seconds: float) -> None:
    world.crash(name, power=True)
    _later(world, seconds, world.start, name)


def _cut_off(world: ClusterWorld, rng: random.Random, name: str, seconds: float) -> None:
    others = _others(world, name)
    some = rng.sample(others, rng.randint(1, len(others)))
    world.cut_off(name, some)
    _later(world, seconds, world.reconnect, name, some)


def _divide(world: ClusterWorld, rng: random.Random, name: str, seconds: float) -> None:
    names = list(world.hosts)
    half = rng.sample(names, len(names) // 2)
    rest = [n for n in names if n not in half]
    for each in half:
        world.cut_off(each, rest)
        _later(world, seconds, world.reconnect, each, rest)


def _cut_one_way(world: ClusterWorld, rng: random.Random, name: str, seconds: float) -> None:
    other = rng.choice(_others(world, name))
    world.network.cut(name, other)
    _later(world, seconds, world.network.heal, name, other)


def _break(world: ClusterWorld, rng: random.Random, name: str, seconds: float) -> None:
    world.network.break_connections(name, rng.choice(_others(world, name)))


def _pause(world: ClusterWorld, rng: random.Random, name: str, seconds: float) -> None:
    world.pause(name)
    _later(world, seconds, world.resume, name)


def _slow_down(world: ClusterWorld, rng: random.Random, name: str, seconds: float) -> None:
    world.slow_down(name, rng.choice([0.01, 0.05, 0.3]))
    _later(world, seconds, world.slow_down, name, 0.0)


def _others(world: ClusterWorld, name: str) -> list[str]:
    return [other for other in world.hosts if other != name]


def _later(world: ClusterWorld, seconds: float, call: Callable[..., None], *args: Any) -> None:
    world.loop.call_later(seconds, call, *args)


# ---- defects that are only logged


@contextmanager
def exceptions_are_violations(world: ClusterWorld) -> Iterator[None]:
    """An exception that the product only logs is a defect all the same."""

    def collect(logger: object, method: str, event: Any) -> Any:
        if event.get("exception"):
            world.judge.violation(f"logged: {event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.ExceptionRenderer(), collect],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


async def cluster_run(seed: int) -> ClusterRun:
    return await ClusterRun(seed).go()
