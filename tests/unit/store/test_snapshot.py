"""Snapshots: everything, consistent, and the same on every manager."""

from __future__ import annotations

import random

import pytest

from swarmlet.api import pb
from swarmlet.store.store import Store, wrap
from tests.builders import (
    NOW,
    LocalProposer,
    a_cluster,
    a_config,
    a_global_service,
    a_network,
    a_node,
    a_secret,
    a_service,
    a_task,
    make_store,
)


def a_full_store() -> Store:
    service = a_service("web", labels={f"l{n}": "x" for n in range(10)})
    node = a_node("one", labels={"rack": "r"})
    return make_store(
        a_cluster(),
        node,
        service,
        a_global_service(),
        a_task(service, 1, node_id=node.id),
        a_task(service, 2),
        a_network(),
        a_secret(),
        a_config(),
    )


def an_empty_store() -> Store:
    return Store(now=lambda: NOW, rng=random.Random(0))


def all_objects(store: Store) -> list[pb.StoreObject]:
    return [wrap(value) for table in store.view.all_tables() for value in table]


def test_a_restored_store_holds_the_same() -> None:
    store = a_full_store()
    other = an_empty_store()

    other.restore(store.applied_index, store.snapshot()())

    assert all_objects(other) == all_objects(store)
    assert len(all_objects(other)) == 9
    assert other.applied_index == store.applied_index
    assert other.operation_index("builders") == 1
    assert other.view.cluster() == store.view.cluster()
    assert other.view.services.by_name("web") is not None


def test_an_empty_store_has_an_empty_snapshot() -> None:
    store = a_full_store()

    store.restore(9, an_empty_store().snapshot()())

    assert all_objects(store) == []
    assert store.view.cluster() is None
    assert store.applied_index == 9


async def test_a_snapshot_is_of_the_moment_it_was_taken() -> None:
    store = make_store(kept := a_service("kept"))
    encode = store.snapshot()
    await store.update(lambda tx: tx.delete(pb.Service, kept.id), operation_id="later")
    await store.update(lambda tx: tx.create(a_service("new")))

    other = an_empty_store()
    other.restore(1, encode())

    assert [service.spec.name for service in other.view.services] == ["kept"]
    assert other.operation_index("later") is None


async def test_the_same_log_gives_the_same_bytes() -> None:
    store = a_full_store()
    proposer = LocalProposer(store)
    store.attach(proposer)
    other = an_empty_store()
    other.restore(store.applied_index, store.snapshot()())

    await store.update(lambda tx: tx.create(a_service("late", labels={"b": "1", "a": "2"})))
    for index, data in proposer.log:
        other.apply(index, data)

    assert other.snapshot()() == store.snapshot()()


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff", pb.StoreSnapshot(objects=[pb.StoreObject()]).SerializeToString()]
)
def test_what_is_no_snapshot_is_refused_and_changes_nothing(data: bytes) -> None:
    store = a_full_store()
    before = store.snapshot()()

    with pytest.raises(ValueError, match=r"snapshot|newer version"):
        store.restore(99, data)

    assert store.snapshot()() == before
    assert store.applied_index == 1
