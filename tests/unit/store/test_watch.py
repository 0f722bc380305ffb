"""A watcher sees what it asked for, all of it and in order, or is told that it did not."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from swarmlet.api import pb
from swarmlet.store import watch
from swarmlet.store.store import Store, Transaction
from swarmlet.store.watch import Change, WatchOverflow
from tests.builders import a_node, a_service, a_task, make_store
from tests.unit.store.services import renamed, stored


async def create(store: Store, *names: str) -> None:
    def change(tx: Transaction) -> None:
        for name in names:
            tx.create(a_service(name))

    await store.update(change)


def names(changes: list[Change]) -> list[str]:
    return [c.current.spec.name for c in changes if isinstance(c.current, pb.Service)]


async def test_watcher_sees_what_comes_after_its_view_and_nothing_before() -> None:
    store = make_store(a_service("before"))

    with store.watching() as watcher:
        in_view = [service.spec.name for service in store.view.services]
        await create(store, "one", "two")
        await create(store, "three")
        changes = await watcher.next()

    assert in_view == ["before"]
    assert names(changes) == ["one", "two", "three"]
    assert [c.index for c in changes] == [2, 2, 3]


async def test_changes_carry_what_was_and_what_is() -> None:
    store = make_store(service := a_service("old"))
    old = stored(store, service)

    with store.watching() as watcher:
        await store.update(lambda tx: tx.update(renamed(old, "new")))
        new = stored(store, service)
        await store.update(lambda tx: tx.delete(pb.Service, service.id))
        updated, deleted = await watcher.next()

    assert (updated.kind, updated.old, updated.new) == (pb.CHANGE_KIND_UPDATE, old, new)
    assert (deleted.kind, deleted.old, deleted.new) == (pb.CHANGE_KIND_DELETE, new, None)
    assert deleted.current is new


async def test_a_change_of_nothing_cannot_be_asked_for_its_object() -> None:
    with pytest.raises(ValueError, match="nothing"):
        _ = Change(pb.CHANGE_KIND_DELETE, 1, None, None).current


async def test_watcher_waits_until_something_it_wants_changes() -> None:
    store = make_store()

    with store.watching(lambda change: isinstance(change.current, pb.Task)) as watcher:
        reading = asyncio.create_task(watcher.next())
        await create(store, "ignored")
        await asyncio.sleep(0)
        was_waiting = not reading.done()
        task = a_task(next(iter(store.view.services)))
        await store.update(lambda tx: tx.create(task))
        changes = await reading

    assert was_waiting
    assert [c.current.id for c in changes] == [task.id]


async def test_a_read_that_is_cancelled_loses_nothing() -> None:
    store = make_store()

    with store.watching() as watcher:
        reading = asyncio.create_task(watcher.next())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await create(store, "one")
        changes = await watcher.next()

    assert names(changes) == ["one"]


async def test_a_refused_transaction_is_not_seen() -> None:
    store = make_store(service := a_service())
    outdated = pb.Transaction(operation_id="x")
    outdated.changes.add(kind=pb.CHANGE_KIND_UPDATE, expected_version=99).object.service.CopyFrom(service)

    with store.watching() as watcher:
        store.apply(2, outdated.SerializeToString())
        await create(store, "after")
        changes = await watcher.next()

    assert names(changes) == ["after"]


async def test_slow_watcher_is_told_once_and_goes_on_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "QUEUE_CHANGES_MAX", 3)
    store = make_store()

    with store.watching() as slow, store.watching() as quick:
        await create(store, "a", "b", "c")
        seen = names(await quick.next())
        await create(store, "d")
        await create(store, "e")
        with pytest.raises(WatchOverflow):
            await slow.next()
        in_view = {service.spec.name for service in store.view.services}
        await create(store, "f")
        later = names(await slow.next())
        seen += names(await quick.next())

    assert in_view == {"a", "b", "c", "d", "e"}
    assert later == ["f"]
    assert seen == ["a", "b", "c", "d", "e", "f"]


async def test_a_queue_at_its_bound_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "QUEUE_CHANGES_MAX", 3)
    store = make_store()

    with store.watching() as watcher:
        await create(store, "a", "b", "c")

        assert names(await watcher.next()) == ["a", "b", "c"]


async def test_restoring_a_snapshot_tells_every_watcher_to_start_over() -> None:
    store = make_store(a_node())
    data = store.snapshot()()

    with store.watching() as one, store.watching() as other:
        await create(store, "lost")
        store.restore(7, data)
        for watcher in (one, other):
            with pytest.raises(WatchOverflow):
                await watcher.next()

    assert len(store.view.services) == 0


async def test_a_filter_that_fails_costs_only_its_own_watcher() -> None:
    store = make_store()

    def broken(change: Change) -> bool:
        raise RuntimeError("defect")

    with store.watching(broken) as bad, store.watching() as good:
        await create(store, "one")

        assert names(await good.next()) == ["one"]
        with pytest.raises(WatchOverflow):
            await bad.next()


async def test_a_watcher_that_left_is_told_nothing_more() -> None:
    store = make_store()
    seen: list[Change] = []

    def remember(change: Change) -> bool:
        seen.append(change)
        return True

    with store.watching(remember):
        await create(store, "one")
    await create(store, "two")

    assert names(seen) == ["one"]


async def test_changes_can_be_iterated_until_the_reader_was_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "QUEUE_CHANGES_MAX", 2)
    store = make_store()
    seen: list[str] = []
    creating = asyncio.create_task(create(store, "one"))

    with pytest.raises(WatchOverflow):
        async with aclosing(store.changes(lambda change: change.new is not None)) as changes:
            async for batch in changes:
                seen += names(batch)
                await create(store, "a", "b", "c")

    await creating
    assert seen == ["one"]
