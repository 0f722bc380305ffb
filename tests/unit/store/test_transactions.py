"""One change of the state: whole or not at all, on the newest state, never in place."""

from __future__ import annotations

import random

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, Unavailable
from swarmlet.store.store import Store, Transaction
from tests.builders import (
    NOW,
    a_network,
    a_node,
    a_service,
    a_task,
    make_store,
)
from tests.unit.store.services import renamed, stored


async def test_created_object_has_its_index_and_times() -> None:
    store = make_store(a_node())
    service = a_service()

    await store.update(lambda tx: tx.create(service))

    found = stored(store, service)
    assert found.version.index == store.applied_index == 2
    assert found.created_at.ToDatetime(tzinfo=NOW.tzinfo) == NOW
    assert found.updated_at == found.created_at
    assert service.version.index == 1, "the caller's object is not touched"


async def test_updated_object_keeps_its_creation_time() -> None:
    clock = iter([NOW, NOW.replace(hour=9)])
    store = make_store(now=lambda: next(clock))
    service = a_service()
    await store.update(lambda tx: tx.create(service))
    changed = renamed(stored(store, service), "shop")
    changed.ClearField("created_at")

    await store.update(lambda tx: tx.update(changed))

    found = stored(store, service)
    assert found.created_at.ToDatetime(tzinfo=NOW.tzinfo) == NOW
    assert found.updated_at.ToDatetime(tzinfo=NOW.tzinfo) == NOW.replace(hour=9)
    assert found.version.index == 2
    assert store.view.services.by_name("web") is None
    assert store.view.services.by_name("shop") is found


async def test_the_result_of_the_change_is_returned() -> None:
    store = make_store()

    service_id = await store.update(create_with_new_id)

    assert store.view.services.get(service_id) is not None


def create_with_new_id(tx: Transaction) -> str:
    service = a_service(id=tx.new_id())
    tx.create(service)
    return service.id


async def test_a_change_of_nothing_is_not_proposed() -> None:
    store = make_store()

    assert await store.update(lambda tx: "read") == "read"

    assert store.applied_index == 0


async def test_an_error_in_the_change_leaves_nothing_behind() -> None:
    store = make_store()

    def half(tx: Transaction) -> None:
        tx.create(a_service("one"))
        raise InvalidArgument("no")

    with pytest.raises(InvalidArgument):
        await store.update(half)

    assert len(store.view.services) == 0
    assert store.applied_index == 0


async def test_objects_held_by_a_reader_are_not_changed_in_place() -> None:
    store = make_store(service := a_service())
    before = stored(store, service)
    as_text = str(before)

    await store.update(lambda tx: tx.update(renamed(before, "shop")))

    assert str(before) == as_text
    assert stored(store, service) is not before


async def test_a_caller_may_reuse_what_it_gave() -> None:
    store = make_store()
    service = a_service("web")

    def create(tx: Transaction) -> None:
        tx.create(service)
        service.spec.name = "changed later"

    await store.update(create)

    assert stored(store, service).spec.name == "web"


# ---- refusals


async def test_taken_ids_and_names_are_refused() -> None:
    store = make_store(service := a_service("web"))

    with pytest.raises(AlreadyExists, match=r"service service.* already exists"):
        await store.update(lambda tx: tx.create(service))
    with pytest.raises(
        AlreadyExists, match="name conflicts with an existing object: service web already exists"
    ):
        await store.update(lambda tx: tx.create(a_service("web")))


async def test_names_are_unique_per_kind_only() -> None:
    store = make_store(a_service("front"))

    await store.update(lambda tx: tx.create(a_network("front")))

    assert store.view.networks.by_name("front") is not None


async def test_what_is_not_there_is_neither_updated_nor_deleted() -> None:
    store = make_store()

    with pytest.raises(NotFound, match=r"service .* not found"):
        await store.update(lambda tx: tx.update(a_service()))
    with pytest.raises(NotFound, match="node missing not found"):
        await store.update(lambda tx: tx.delete(pb.Node, "missing"))


async def test_an_object_without_id_is_a_defect_of_the_caller() -> None:
    store = make_store()

    with pytest.raises(ValueError, match="a node without an id"):
        await store.update(lambda tx: tx.create(pb.Node()))


async def test_an_update_of_an_old_version_is_refused() -> None:
    store = make_store(service := a_service())
    old = stored(store, service)
    await store.update(lambda tx: tx.update(renamed(old, "shop")))

    with pytest.raises(Conflict, match="update out of sequence"):
        await store.update(lambda tx: tx.update(renamed(old, "other")))

    assert stored(store, service).spec.name == "shop"


async def test_a_change_that_is_too_large_is_refused_before_it_is_proposed() -> None:
    store = make_store()

    with pytest.raises(InvalidArgument, match=r"too large: .* bytes"):
        await store.update(lambda tx: tx.create(a_service(labels={"long": "x" * 1_500_000})))

    assert store.applied_index == 0


async def test_a_store_without_agreement_cannot_write() -> None:
    store = Store(now=lambda: NOW, rng=random.Random(0))

    with pytest.raises(RuntimeError, match="no proposer"):
        await store.update(lambda tx: tx.create(a_service()))


async def test_what_agreement_raises_is_passed_on() -> None:
    class Gone:
        async def propose(self, data: bytes) -> object:
            raise Unavailable("no majority")

    store = make_store()
    store.attach(Gone())

    with pytest.raises(Unavailable, match="no majority"):
        await store.update(lambda tx: tx.create(a_service()))


# ---- several changes of one object or name in one transaction


async def test_a_transaction_sees_its_own_changes() -> None:
    store = make_store(kept := a_service("kept"), gone := a_service("gone"))
    new = a_service("new")
    seen: list[pb.Service | None] = []

    def change(tx: Transaction) -> None:
        tx.create(new)
        tx.update(renamed(stored(store, kept), "renamed"))
        tx.delete(pb.Service, gone.id)
        seen.extend(tx.get(pb.Service, s.id) for s in (new, kept, gone))

    await store.update(change)

    assert [s.spec.name if s else None for s in seen] == ["new", "renamed", None]


async def test_changes_of_one_object_become_one() -> None:
    store = make_store(service := a_service("one"))
    new = a_service("x")
    brief = a_service("brief")

    def change(tx: Transaction) -> None:
        tx.update(renamed(stored(store, service), "two"))
        tx.update(renamed(stored(store, service), "three"))
        tx.create(new)
        tx.update(renamed(new, "y"))
        tx.create(brief)
        tx.delete(pb.Service, brief.id)

    with store.watching() as watcher:
        await store.update(change)
        changes = await watcher.next()

    assert [(c.kind, c.current.spec.name) for c in changes if isinstance(c.current, pb.Service)] == [
        (pb.CHANGE_KIND_UPDATE, "three"),
        (pb.CHANGE_KIND_CREATE, "y"),
    ]


async def test_an_object_updated_and_deleted_is_deleted() -> None:
    store = make_store(service := a_service("one"))

    def change(tx: Transaction) -> None:
        tx.update(renamed(stored(store, service), "two"))
        tx.delete(pb.Service, service.id)
        with pytest.raises(NotFound):
            tx.update(renamed(stored(store, service), "three"))
        with pytest.raises(NotFound):
            tx.delete(pb.Service, service.id)

    await store.update(change)

    assert store.view.services.get(service.id) is None
    assert store.view.services.by_name("one") is None


async def test_an_object_deleted_and_created_again_is_replaced() -> None:
    store = make_store(service := a_service("one"))

    def change(tx: Transaction) -> None:
        tx.delete(pb.Service, service.id)
        tx.create(renamed(service, "two"))

    await store.update(change)

    assert stored(store, service).spec.name == "two"


async def test_a_name_passes_on_within_a_transaction() -> None:
    store = make_store(old := a_service("web"), other := a_service("other"))
    new = a_service("web")

    def change(tx: Transaction) -> None:
        tx.delete(pb.Service, old.id)
        tx.create(new)
        tx.update(renamed(stored(store, other), "free"))

    await store.update(change)

    assert store.view.services.by_name("web") is stored(store, new)
    assert store.view.services.by_name("free") is stored(store, other)
    assert store.view.services.by_name("other") is None


async def test_two_objects_swap_their_names() -> None:
    store = make_store(one := a_service("one"), two := a_service("two"), a_service("free"))

    def swap(tx: Transaction) -> None:
        tx.update(renamed(stored(store, one), "tmp"))
        tx.update(renamed(stored(store, two), "one"))
        tx.update(renamed(stored(store, one), "two"))

    await store.update(swap)

    assert store.view.services.by_name("one") is stored(store, two)
    assert store.view.services.by_name("two") is stored(store, one)
    assert store.view.services.by_name("tmp") is None


async def test_one_name_twice_in_a_transaction_is_refused() -> None:
    store = make_store(one := a_service("one"))

    def twice(tx: Transaction) -> None:
        tx.create(a_service("web"))
        tx.create(a_service("web"))

    def keep(tx: Transaction) -> None:
        tx.update(stored(store, one))
        tx.create(a_service("one"))

    for change in (twice, keep):
        with pytest.raises(AlreadyExists, match="name conflicts"):
            await store.update(change)
    assert len(store.view.services) == 1


# ---- entries that this version would not write


def test_an_entry_that_changes_an_object_twice_is_refused() -> None:
    store = make_store()
    service = a_service()
    entry = pb.Transaction(operation_id="x")
    for _ in range(2):
        entry.changes.add(kind=pb.CHANGE_KIND_CREATE).object.service.CopyFrom(service)

    refused = store.apply(1, entry.SerializeToString())

    assert isinstance(refused, Conflict)
    assert store.applied_index == 1
    assert len(store.view.services) == 0


def test_an_entry_that_gives_one_name_twice_is_refused() -> None:
    store = make_store()
    entry = pb.Transaction(operation_id="x")
    for _ in range(2):
        entry.changes.add(kind=pb.CHANGE_KIND_CREATE).object.service.CopyFrom(a_service("web"))

    refused = store.apply(1, entry.SerializeToString())

    assert isinstance(refused, AlreadyExists)
    assert len(store.view.services) == 0


def test_an_entry_of_a_newer_version_stops_the_store_before_it_changes_anything() -> None:
    store = make_store()
    entry = pb.Transaction(operation_id="x")
    entry.changes.add(kind=pb.CHANGE_KIND_CREATE).object.service.CopyFrom(a_service())
    entry.changes.add(kind=pb.CHANGE_KIND_CREATE)

    with pytest.raises(ValueError, match="newer version"):
        store.apply(1, entry.SerializeToString())

    assert len(store.view.services) == 0


async def test_a_task_may_be_created_without_a_name() -> None:
    store = make_store(service := a_service())

    def change(tx: Transaction) -> None:
        tx.create(a_task(service, 1))
        tx.create(a_task(service, 2))

    await store.update(change)

    assert store.view.tasks.count("service", service.id) == 2
