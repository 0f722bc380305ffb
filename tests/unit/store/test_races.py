"""Writers that race and operations that are repeated: no update is lost, none is done twice."""

from __future__ import annotations

import asyncio
import random

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import AlreadyExists, Conflict
from swarmlet.store import store as store_module
from swarmlet.store.store import Transaction
from tests.builders import InterleavingProposer, LocalProposer, a_service, make_store
from tests.unit.store.services import renamed, stored


@pytest.mark.parametrize("seed", range(20))
async def test_concurrent_updates_of_one_object_are_all_kept(seed: int) -> None:
    store = make_store(service := a_service(replicas=0))
    store.attach(InterleavingProposer(store, random.Random(seed)))

    def add_one(tx: Transaction) -> None:
        copy = pb.Service()
        copy.CopyFrom(stored(store, service))
        copy.spec.mode.replicated.replicas += 1
        tx.update(copy)

    await asyncio.gather(*(store.update(add_one) for _ in range(30)))

    assert stored(store, service).spec.mode.replicated.replicas == 30


async def test_who_creates_a_name_second_is_told_so() -> None:
    store = make_store()
    store.attach(InterleavingProposer(store, random.Random(1)))

    outcomes = await asyncio.gather(
        *(store.update(lambda tx: tx.create(a_service("web"))) for _ in range(5)), return_exceptions=True
    )

    assert sum(outcome is None for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AlreadyExists) for outcome in outcomes) == 4
    assert len(store.view.services) == 1


async def test_who_is_never_fast_enough_gives_up_with_a_conflict() -> None:
    store = make_store(service := a_service())
    local = LocalProposer(store)

    class AlwaysLater:
        """Somebody else changes the service before every proposal."""

        async def propose(self, data: bytes) -> object:
            other = Transaction(store.view, lambda: "unused")
            other.update(renamed(stored(store, service), f"name{store.applied_index}"))
            local.apply(
                pb.Transaction(
                    operation_id=f"{store.applied_index}", changes=other.changes
                ).SerializeToString()
            )
            return local.apply(data)

    store.attach(AlwaysLater())
    attempts = 0

    def change(tx: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        tx.update(stored(store, service))

    with pytest.raises(Conflict, match="gave up after 50 attempts: update out of sequence"):
        await store.update(change)
    assert attempts == store_module.RETRIES_MAX
    with pytest.raises(Conflict, match="gave up"):
        await store.batch([change])


async def test_an_operation_done_twice_changes_the_state_once() -> None:
    store = make_store(service := a_service(replicas=1))

    def add_one(tx: Transaction) -> None:
        copy = pb.Service()
        copy.CopyFrom(stored(store, service))
        copy.spec.mode.replicated.replicas += 1
        tx.update(copy)

    await store.update(add_one, operation_id="once")
    index = store.operation_index("once")
    await store.update(add_one, operation_id="once")

    assert stored(store, service).spec.mode.replicated.replicas == 2
    assert index == 2
    assert store.operation_index("once") == 2
    assert store.operation_index("other") is None


async def test_a_refused_operation_may_be_done_later() -> None:
    store = make_store(service := a_service("web"))
    with pytest.raises(AlreadyExists):
        await store.update(lambda tx: tx.create(a_service("web")), operation_id="op")
    await store.update(lambda tx: tx.delete(pb.Service, service.id))

    await store.update(lambda tx: tx.create(a_service("web")), operation_id="op")

    assert store.operation_index("op") == store.applied_index


async def test_the_oldest_operations_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "OPERATIONS_REMEMBERED", 2)
    store = make_store()

    for name in ("a", "b", "c"):
        await store.update(lambda tx, name=name: tx.create(a_service(name)), operation_id=name)  # type: ignore[misc]

    assert [store.operation_index(name) for name in ("a", "b", "c")] == [None, 2, 3]


def test_entries_without_an_operation_id_are_told_apart() -> None:
    store = make_store()
    for name in ("one", "two"):
        entry = pb.Transaction()
        entry.changes.add(kind=pb.CHANGE_KIND_CREATE).object.service.CopyFrom(a_service(name))
        store.apply(store.applied_index + 1, entry.SerializeToString())

    assert len(store.view.services) == 2
