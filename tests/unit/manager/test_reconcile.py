"""The loop that runs controllers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import Unavailable
from swarmlet.manager import reconcile
from swarmlet.manager.reconcile import Key, Plan, ReconcileLoop
from swarmlet.store.store import Store, Transaction
from swarmlet.store.tables import Tables
from swarmlet.store.watch import Change
from tests.builders import a_node, a_service, make_store


def wall_clock() -> datetime:
    return datetime.now(UTC)


class Scripted:
    """A controller whose keys are ids and whose plans are given by the test."""

    name = "scripted"

    def __init__(self, plan: Callable[[Tables, Key, datetime], Plan] = lambda *_: Plan()) -> None:
        self.planned: list[Key] = []
        self.fails_on_keys = False
        self._plan = plan

    def keys(self, change: Change) -> Iterable[Key]:
        if self.fails_on_keys:
            self.fails_on_keys = False
            raise RuntimeError("defect")
        return [change.current.id]

    def all_keys(self, view: Tables) -> Iterable[Key]:
        return [service.id for service in view.services]

    def plan(self, view: Tables, key: Key, now: datetime) -> Plan:
        self.planned.append(key)
        return self._plan(view, key, now)


@asynccontextmanager
async def running(
    store: Store, controller: Scripted, *, now: Callable[[], datetime] = wall_clock
) -> AsyncIterator[None]:
    task = asyncio.create_task(ReconcileLoop(store, controller, now=now).run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for are the loop's own doings
            await asyncio.sleep(0.005)


async def test_every_key_is_planned_at_the_beginning() -> None:
    services = [a_service(f"s{i}") for i in range(3)]
    controller = Scripted()

    async with running(make_store(*services), controller):
        await until(lambda: len(controller.planned) == 3)

    assert set(controller.planned) == {s.id for s in services}


async def test_a_change_brings_its_keys_and_a_burst_is_planned_once() -> None:
    store, controller, node = make_store(), Scripted(), a_node()

    async with running(store, controller):
        await asyncio.sleep(0)
        await store.update(lambda tx: tx.create(node))
        for _ in range(5):
            await store.update(lambda tx: tx.update(store.view.nodes.get(node.id) or node))
        await until(lambda: bool(controller.planned))

    assert controller.planned == [node.id]


async def test_edits_are_committed() -> None:
    service = a_service()
    store = make_store(service)

    def rename(tx: Transaction) -> None:
        changed = pb.Service()
        changed.CopyFrom(tx.get(pb.Service, service.id) or service)
        changed.spec.name = "renamed"
        tx.update(changed)

    def plan(view: Tables, key: Key, now: datetime) -> Plan:
        return Plan(edits=[rename]) if view.services.by_name("renamed") is None else Plan()

    async with running(store, Scripted(plan)):
        await until(lambda: store.view.services.by_name("renamed") is not None)


async def test_a_key_is_looked_at_again_when_its_time_has_come() -> None:
    due = wall_clock() + timedelta(seconds=0.1)
    times: list[datetime] = []

    def plan(view: Tables, key: Key, now: datetime) -> Plan:
        times.append(now)
        return Plan(look_again=due) if now < due else Plan()

    async with running(make_store(a_service()), Scripted(plan)):
        await until(lambda: len(times) == 2)

    assert times[1] >= due


async def test_a_clock_that_is_set_back_while_a_key_waits_does_not_hold_it_up() -> None:
    set_forward = timedelta(hours=5)
    planned: list[datetime] = []

    def plan(view: Tables, key: Key, now: datetime) -> Plan:
        planned.append(now)
        return Plan(look_again=now + timedelta(seconds=0.05))

    def now() -> datetime:
        return wall_clock() + set_forward

    async with running(make_store(a_service()), Scripted(plan), now=now):
        await until(lambda: len(planned) == 2)
        set_forward = timedelta(0)
        await until(lambda: len(planned) == 4)


async def test_a_plan_that_came_to_nothing_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "RETRY_SECONDS", 0.01)

    def plan(view: Tables, key: Key, now: datetime) -> Plan:
        return Plan(edits=[lambda tx: None])

    controller = Scripted(plan)
    async with running(make_store(a_service()), controller):
        await until(lambda: len(controller.planned) >= 3)


async def test_a_defect_that_one_key_meets_does_not_hold_up_the_others() -> None:
    services = [a_service(f"s{i}") for i in range(3)]
    done: set[Key] = set()

    def plan(view: Tables, key: Key, now: datetime) -> Plan:
        if key == services[0].id:
            raise RuntimeError("defect")
        done.add(key)
        return Plan()

    async with running(make_store(*services), Scripted(plan)):
        await until(lambda: len(done) == 2)


async def test_what_the_store_refuses_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    node = a_node()
    store = make_store(a_service())
    refusals: list[Exception] = [Unavailable("no quorum"), RuntimeError("defect")]
    original = store.batch

    async def batch(units: Iterable[Callable[[Transaction], None]]) -> int:
        if refusals:
            raise refusals.pop()
        return await original(units)

    def plan(view: Tables, key: Key, now: datetime) -> Plan:
        known = view.nodes.get(node.id) is not None
        return Plan() if known else Plan(edits=[lambda tx: tx.create(node)])

    monkeypatch.setattr(store, "batch", batch)
    monkeypatch.setattr(reconcile, "RETRY_SECONDS", 0.01)
    async with running(store, Scripted(plan)):
        await until(lambda: store.view.nodes.get(node.id) is not None)

    assert refusals == []


async def test_a_defect_in_keys_means_planning_everything_again() -> None:
    service = a_service()
    store, controller = make_store(service), Scripted()

    async with running(store, controller):
        await until(lambda: controller.planned == [service.id])
        controller.fails_on_keys = True
        await store.update(lambda tx: tx.create(a_node()))
        await until(lambda: controller.planned == [service.id, service.id])


async def test_a_loop_that_fell_behind_plans_everything_again() -> None:
    service = a_service()
    store, controller = make_store(service), Scripted()

    async with running(store, controller):
        await until(lambda: controller.planned == [service.id])
        store._hub.overflow_all()
        await until(lambda: controller.planned == [service.id, service.id])


async def test_a_long_round_lets_others_have_their_turn() -> None:
    services = [a_service(f"s{i}") for i in range(5)]
    turns = 0
    seen: list[int] = []

    def plan(view: Tables, key: Key, now: datetime) -> Plan:
        seen.append(turns)
        end = asyncio.get_running_loop().time() + reconcile.PLANNING_SECONDS_MAX * 1.5
        while asyncio.get_running_loop().time() < end:
            pass
        return Plan()

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    async with running(make_store(*services), Scripted(plan)):
        await until(lambda: len(seen) == 5)
    task.cancel()

    assert len(set(seen)) == 5
