"""The end of a schedule: peace, then the reckoning."""

from __future__ import annotations

import asyncio

from tests.sim.raftworld import Manager, World


async def settle(world: World, seconds: float = 20.0) -> None:
    """Heals everything and waits until all members agree; says so when they do not in time."""
    for client in list(world.clients):
        client.cancel()
    await asyncio.gather(*world.clients, return_exceptions=True)
    world.separated.clear()
    world.power_loss_at_sync = 0.0
    for name in world.names:
        world.come_back(name)
    for manager in world.alive():
        manager.paused_until = 0.0
    await asyncio.sleep(0)
    for number, a in enumerate(world.names):
        for b in world.names[number + 1 :]:
            world.reconnect(a, b)
    if not await world.until(lambda: _agreed(world), seconds):
        states = {
            m.name: (m.node.term, m.node.core.applied_index, sorted(m.node.core.members))
            for m in world.alive()
        }
        world.violations.append(f"not agreed {seconds} s after everything was healed: {states}")


def _agreed(world: World) -> bool:
    leader = world.leader()
    if leader is None:
        return False
    members = leader.node.core.members
    for manager in world.alive():
        is_member = manager.name in members
        if not is_member and manager.name in manager.node.core.members:
            return False  # It was voted out and has not been told yet.
        if is_member and manager.node.core.applied_index != leader.node.core.last_index:
            return False
    return members.keys() <= world.managers.keys()


def check(world: World) -> None:
    """Compares what clients were told with what all members hold."""
    leader = world.leader()
    if leader is None:
        world.violations.append("nobody leads in the end")
        return
    members = [m for m in world.alive() if m.name in leader.node.core.members]
    histories = {tuple(m.machine.operations) for m in members}
    if len(histories) != 1:
        world.violations.append(f"managers hold {len(histories)} different states")
        return
    (history,) = histories
    positions = {operation: number + 1 for number, operation in enumerate(history)}
    if len(positions) != len(history):
        world.violations.append("an operation was applied twice")
    for operation, told in world.acknowledged.items():
        if operation not in positions:
            world.violations.append(f"acknowledged write {operation!r} is lost")
        elif positions[operation] != told.position:
            world.violations.append(f"{operation!r} was told position {told.position}")
    for operation in world.refused & positions.keys():
        world.violations.append(f"{operation!r} was refused for certain and is there")
    _check_configurations(world, members)
    _check_real_time_order(world)


def _check_configurations(world: World, members: list[Manager]) -> None:
    if len({tuple(sorted(m.node.core.members)) for m in members}) != 1:
        world.violations.append("managers do not agree on who they are")


def _check_real_time_order(world: World) -> None:
    newest_began = float("-inf")
    for told in sorted(world.acknowledged.values(), key=lambda a: a.position):
        if told.ended < newest_began:
            world.violations.append(f"position {told.position} was answered before an earlier one was asked")
        newest_began = max(newest_began, told.began)
