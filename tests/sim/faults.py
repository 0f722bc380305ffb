"""Random schedules: what goes wrong, and what clients do meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from tests.sim.raftworld import World
from tests.sim.verdict import check, settle


async def random_faults(world: World, seconds: float, rate: float = 1.0) -> None:
    """Crashes, cuts, stalls and pauses at random moments."""
    rng = world.rng
    end = world.time() + seconds
    while world.time() < end:
        await asyncio.sleep(rng.expovariate(rate))
        a, b = rng.sample(world.names, 2)
        kind = rng.random()
        if kind < 0.25:
            for name in rng.choice([[a], [a], [a], world.names]):
                world.lose_power(name)
        elif kind < 0.4:
            world.break_connection(a, b)
        elif kind < 0.55:
            world.separate(a, b)
            world._later(rng.uniform(0.6, 4.0), world.reconnect, a, b)
        elif kind < 0.75:
            world.stall(a, b, rng.uniform(0.1, 3.0))
        elif kind < 0.85:
            for other in world.names:
                if other != a:
                    world.separate(a, other)
                    world._later(rng.uniform(0.6, 4.0), world.reconnect, a, other)
        else:
            world.pause(a, rng.uniform(0.1, 2.0))
        world.observe()


async def random_membership(world: World, seconds: float) -> None:
    """Managers that join and leave, and leaders that hand over."""
    rng = world.rng
    end = world.time() + seconds
    while world.time() < end:
        await asyncio.sleep(rng.uniform(0.3, 3.0))
        name = rng.choice(world.names)
        kind = rng.random()
        if kind < 0.3:
            world.spawn(world.hand_over(name))
        elif kind < 0.65 and name in world.managers:
            world.spawn(world.remove(name))
        elif name not in world.managers and not world.disks[name].entries:
            world.spawn(world.join(name))


async def random_clients(world: World, seconds: float) -> None:
    rng = world.rng
    end = world.time() + seconds
    number = 0
    while world.time() < end:
        name = rng.choice(world.names)
        for _ in range(rng.choice([1, 1, 3, 12])):
            number += 1
            world.submit(name, b"%d" % number, retries=rng.choice([0, 0, 0, 5]))
        world.read(rng.choice(world.names))
        await asyncio.sleep(rng.uniform(0.005, 0.15))
        world.observe()


def weak_power(world: World) -> None:
    """One fast disk among slow ones in a rack: most crashes come while something is being written."""
    world.delay_seconds, world.power_loss_at_sync = 0.002, 0.02
    world.sync_seconds = {name: 0.2 if number else 0.0 for number, name in enumerate(world.names)}


async def random_run(
    seed: int,
    *,
    seconds: float = 14.0,
    size: int | None = None,
    tune: Callable[[World], None] = lambda world: None,
) -> World:
    """One schedule from its seed: faults and clients for a while, then peace, then the reckoning."""
    rng = random.Random(seed)
    world = World(rng, size=size or rng.choice([3, 3, 5]), spare=rng.choice([0, 0, 1, 2]))
    tune(world)
    world.found()
    for name in world.founders:
        world.start(name)
    await world.until(lambda: world.leader() is not None, 10)
    work = [random_faults(world, seconds), random_clients(world, seconds)]
    if len(world.names) > len(world.founders):
        work.append(random_membership(world, seconds))
    await asyncio.gather(*work)
    await settle(world)
    check(world)
    return world
