"""A cluster for stories: a few words for what happens to it, and the reckoning at the end of each.

Every story ends whole: what is broken is healed, and everything that the judge saw and
`ending` finds must be as it should.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable
from typing import Any

from swarmlet.api import pb, taskstate
from tests.sim.clock import run_virtually
from tests.sim.clusterruns import exceptions_are_violations
from tests.sim.clusterworld import ClusterWorld, run_in
from tests.sim.ending import broken_promises, differences
from tests.sim.users import Promises, User, Watching

PATIENCE_SECONDS = 60.0


class Stage:
    def __init__(self, world: ClusterWorld) -> None:
        self.world = world
        self.promises = Promises()
        self._people = world.process("people")
        self._user = User(world, self._people, self.promises, random.Random("user"))
        self._watching = [Watching(world, self._people, random.Random("watching"))]

    async def begin(self) -> None:
        await self.world.form()
        for watching in self._watching:
            self._people.spawn(watching.run, "watching")

    # ---- what people do

    async def create(self, spec: pb.ServiceSpec) -> str:
        """Returns the id of the service once all its tasks run."""
        service_id: str = await run_in(self._people, lambda: self._user.create(spec))
        await self.until(lambda: len(self.running(service_id)) == spec.mode.replicated.replicas)
        return service_id

    async def update(self, service_id: str, **changes: Any) -> None:
        """See `User.update`; repeated until it is done."""
        await self._insist(lambda: self._user.update(service_id, **changes))

    async def remove(self, service_id: str) -> None:
        await self._insist(lambda: self._user.remove(service_id))

    async def set_node(self, name: str, **changes: Any) -> None:
        await self._insist(lambda: self._user.set_node(name, **changes))

    async def _insist(self, act: Callable[[], Awaitable[None]]) -> None:
        await run_in(self._people, lambda: self._user.insist(act))

    # ---- what is to be seen

    def service(self, service_id: str) -> pb.Service:
        service = self.world.judge.truth.view.services.get(service_id)
        assert service is not None
        return service

    def tasks(self, service_id: str) -> list[pb.Task]:
        return self.world.judge.truth.view.tasks.find("service", service_id)

    def running(self, service_id: str) -> list[pb.Task]:
        """Stored as running and wanted."""
        return [task for task in self.tasks(service_id) if taskstate.is_running(task)]

    def tasks_on(self, name: str) -> list[pb.Task]:
        """What is stored as running and wanted on a host."""
        tasks = self.world.judge.truth.view.tasks.find("node", name)
        return [task for task in tasks if taskstate.is_running(task)]

    def in_engine(self, name: str) -> list[str]:
        """What really runs on a host."""
        return self.world.hosts[name].engine.running_task_ids()

    def leader(self) -> str:
        leader = self.world.leader()
        assert leader is not None
        return leader.address

    def followers(self) -> list[str]:
        return [name for name in self.world.manager_names if name != self.leader()]

    async def until(self, what: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        assert await self.world.until(what, seconds), f"it did not come to that in {seconds:.0f} s"

    async def until_updated(self, service_id: str, seconds: float = PATIENCE_SECONDS) -> None:
        await self.until(
            lambda: self.service(service_id).update_status.state == pb.UPDATE_STATE_COMPLETED, seconds
        )

    async def end(self) -> None:
        world = self.world
        world.heal()
        world.is_peaceful = True
        await world.until(
            lambda: not any(differences(world, self._watching)), PATIENCE_SECONDS, poll_seconds=0.5
        )
        left = [*differences(world, self._watching), *broken_promises(world, self.promises)]
        assert [*world.judge.violations, *left] == []


def story(**options: Any) -> Callable[[Callable[[Stage], Awaitable[None]]], Callable[[], None]]:
    """Makes a test of a story; `options` are those of `ClusterWorld`."""

    def decorate(tell: Callable[[Stage], Awaitable[None]]) -> Callable[[], None]:
        async def play() -> None:
            world = ClusterWorld(tell.__name__, **options)
            with exceptions_are_violations(world):
                try:
                    stage = Stage(world)
                    await stage.begin()
                    await tell(stage)
                    await stage.end()
                finally:
                    world.close()

        def test() -> None:
            run_virtually(play)

        functools.update_wrapper(test, tell)
        # What pytest would take for fixtures are the story's own parameters.
        del test.__wrapped__  # type: ignore[attr-defined]
        return test

    return decorate
