"""Many units in few transactions: within the limits, none split, none lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.api import pb
from swarmlet.api.errors import Unavailable
from swarmlet.store.store import CHANGES_MAX, TRANSACTION_BYTES_MAX, Store, Transaction
from tests.builders import InterleavingProposer, LocalProposer, a_service, a_task, an_id, make_store


def sizes_of(proposer: LocalProposer) -> list[int]:
    return [len(pb.Transaction.FromString(data).changes) for _, data in proposer.log]


def local(store: Store) -> LocalProposer:
    proposer = LocalProposer(store)
    store.attach(proposer)
    return proposer


def creating(count: int, label_bytes: int = 0) -> Callable[[Transaction], None]:
    def unit(tx: Transaction) -> None:
        for _ in range(count):
            tx.create(pb.Task(id=an_id(), service_labels={"l": "x" * label_bytes}))

    return unit


async def test_units_share_transactions_up_to_the_limit_of_changes() -> None:
    store = make_store()
    proposer = local(store)

    committed = await store.batch(creating(1) for _ in range(450))

    assert committed == 450
    assert sizes_of(proposer) == [200, 200, 50]


async def test_units_share_transactions_up_to_the_limit_of_bytes() -> None:
    store = make_store()
    proposer = local(store)

    await store.batch(creating(1, label_bytes=400_000) for _ in range(7))

    assert sizes_of(proposer) == [3, 3, 1]
    assert all(len(data) < TRANSACTION_BYTES_MAX + 1000 for _, data in proposer.log)


async def test_a_unit_is_never_split() -> None:
    store = make_store()
    proposer = local(store)

    await store.batch([creating(150), creating(150), creating(40), creating(CHANGES_MAX + 50), creating(1)])

    assert sizes_of(proposer) == [150, 190, 250, 1]


async def test_a_unit_that_no_longer_holds_is_left_out_whole() -> None:
    store = make_store(service := a_service("web"))
    proposer = local(store)

    def taken_name(tx: Transaction) -> None:
        tx.create(a_service("new"))
        tx.delete(pb.Service, service.id)
        tx.create(a_task(service))
        tx.create(a_service("other"))
        tx.create(a_service("other"))

    def gone(tx: Transaction) -> None:
        tx.delete(pb.Task, "gone")

    def outdated(tx: Transaction) -> None:
        tx.update(pb.Service(id=service.id, version=pb.Version(index=99)))

    committed = await store.batch([creating(1), taken_name, gone, outdated, creating(2)])

    assert committed == 3
    assert sizes_of(proposer) == [3]
    assert [s.spec.name for s in store.view.services] == ["web"]
    assert len(store.view.tasks) == 3


async def test_two_units_that_want_one_name_do_not_lose_the_others() -> None:
    store = make_store()
    local(store)

    committed = await store.batch(
        [
            creating(1),
            lambda tx: tx.create(a_service("web")),
            lambda tx: tx.create(a_service("web")),
            creating(1),
        ]
    )

    assert committed == 3
    assert len(store.view.services) == 1
    assert len(store.view.tasks) == 2


async def test_units_see_what_units_before_them_did_to_an_object() -> None:
    store = make_store(service := a_service(replicas=0))
    proposer = local(store)

    def add_one(tx: Transaction) -> None:
        copy = pb.Service()
        current = tx.get(pb.Service, service.id)
        assert current is not None
        copy.CopyFrom(current)
        copy.spec.mode.replicated.replicas += 1
        tx.update(copy)

    committed = await store.batch([add_one] * 5)

    found = store.view.services.get(service.id)
    assert found is not None
    assert found.spec.mode.replicated.replicas == 5
    assert committed == 1
    assert sizes_of(proposer) == [1]


async def test_nothing_to_do_is_not_proposed() -> None:
    store = make_store()
    proposer = local(store)

    assert await store.batch([]) == 0
    assert await store.batch([lambda tx: None, lambda tx: tx.delete(pb.Task, "gone")]) == 0

    assert proposer.log == []


async def test_what_agreement_raises_is_passed_on() -> None:
    class Gone:
        async def propose(self, data: bytes) -> object:
            raise Unavailable("no majority")

    store = make_store()
    store.attach(Gone())

    with pytest.raises(Unavailable):
        await store.batch([creating(1)])


@pytest.mark.parametrize("seed", range(10))
async def test_batches_and_updates_that_race_lose_nothing(seed: int) -> None:
    services = [a_service(f"s{n}", replicas=0) for n in range(6)]
    store = make_store(*services)
    store.attach(InterleavingProposer(store, random.Random(seed)))

    def adding(service: pb.Service) -> Callable[[Transaction], None]:
        def unit(tx: Transaction) -> None:
            copy = pb.Service()
            current = tx.get(pb.Service, service.id)
            assert current is not None
            copy.CopyFrom(current)
            copy.spec.mode.replicated.replicas += 1
            tx.update(copy)

        return unit

    units = [adding(service) for service in services]
    await asyncio.gather(
        *(store.batch(units) for _ in range(5)),
        *(store.update(unit) for unit in units for _ in range(3)),
    )

    assert [s.spec.mode.replicated.replicas for s in store.view.services] == [8] * 6


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 120), st.sampled_from([0, 0, 0, 5_000, 900_000]), st.booleans()), max_size=12
    )
)
def test_all_units_that_hold_are_committed_in_order_within_the_limits(
    shapes: list[tuple[int, int, bool]],
) -> None:
    store = make_store()
    proposer = local(store)
    expected: list[str] = []
    units: list[Callable[[Transaction], None]] = []
    for count, label_bytes, fails in shapes:
        count = min(count, 2) if label_bytes > 5_000 else count
        ids = [an_id() for _ in range(count)]
        expected.extend([] if fails else ids)
        units.append(unit_of(ids, label_bytes, fails=fails))

    committed = asyncio.run(store.batch(units))

    assert [task.id for task in store.view.tasks] == expected
    assert committed == len(expected)
    assert all(0 < size <= CHANGES_MAX for size in sizes_of(proposer))


def unit_of(ids: list[str], label_bytes: int, *, fails: bool) -> Callable[[Transaction], None]:
    def unit(tx: Transaction) -> None:
        for task_id in ids:
            tx.create(pb.Task(id=task_id, service_labels={"l": "x" * label_bytes}))
        if fails:
            tx.delete(pb.Node, "missing")

    return unit


def test_the_size_of_a_transaction_is_kept_as_it_grows_and_shrinks() -> None:
    store = make_store(service := a_service("web"))
    tx = Transaction(store.view, an_id)
    current = store.view.services.get(service.id)
    assert current is not None

    tx.try_unit(creating(3, label_bytes=100), is_first=True)
    tx.try_unit(lambda t: t.update(current), is_first=False)
    tx.try_unit(lambda t: t.delete(pb.Service, service.id), is_first=False)
    tx.try_unit(unit_of(["a", "b"], 50, fails=True), is_first=False)
    fitted = tx.try_unit(creating(1, label_bytes=TRANSACTION_BYTES_MAX), is_first=False)

    assert not fitted
    assert len(tx.changes) == 4
    assert tx.size_bytes == sum(change.ByteSize() for change in tx.changes)
