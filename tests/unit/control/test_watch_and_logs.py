"""The streams: changes without a gap, and the logs of a service or a task."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument, NotFound, NotLeader
from swarmlet.control import watch as watch_module
from swarmlet.store import watch as store_watch
from swarmlet.store.store import Transaction, unwrap
from tests.builders import a_cluster, a_node, a_secret, a_service, a_task
from tests.unit.control.fakes import Desk, a_spec, created, drop_one, make_desk

BOTH = pb.LogOptions(stdout=True, stderr=True)


def seen(response: pb.WatchResponse) -> list[tuple[int, str]]:
    return [(event.kind, unwrap(event.object).id) for event in response.events]


# ---- watch


async def test_a_watch_begins_with_everything_and_goes_on_with_changes() -> None:
    web = a_service("web", id="w")
    desk = make_desk(web)

    async with aclosing(desk.control.watch(pb.WatchRequest(kinds=["service"]))) as responses:
        first = await anext(responses)
        api = await created(desk, a_spec("api"))
        await drop_one(desk, pb.Service, "w")
        second = await anext(responses)

    assert first.snapshot
    assert seen(first) == [(pb.CHANGE_KIND_CREATE, "w")]
    assert not second.snapshot
    assert seen(second) == [(pb.CHANGE_KIND_CREATE, api.id), (pb.CHANGE_KIND_DELETE, "w")]


async def test_a_watch_of_nothing_says_so_at_once() -> None:
    async with aclosing(make_desk().control.watch(pb.WatchRequest())) as responses:
        first = await anext(responses)

    assert first == pb.WatchResponse(snapshot=True)


async def test_a_watch_of_one_service_sees_it_and_its_tasks_only() -> None:
    web, api = a_service("web", id="w"), a_service("api", id="a")
    desk = make_desk(web, api, a_node("n"), a_task(web, id="w1"), a_task(api, id="a1"))

    async with aclosing(desk.control.watch(pb.WatchRequest(service_id="w"))) as responses:
        first = await anext(responses)
        await drop_one(desk, pb.Task, "a1")
        await drop_one(desk, pb.Task, "w1")
        second = await anext(responses)

    assert {object_id for _, object_id in seen(first)} == {"w", "w1"}
    assert seen(second) == [(pb.CHANGE_KIND_DELETE, "w1")]


async def test_the_tasks_of_a_removed_service_can_be_watched() -> None:
    desk = make_desk(a_task(a_service("gone", id="g"), id="g1"))

    async with aclosing(desk.control.watch(pb.WatchRequest(service_id="g"))) as responses:
        first = await anext(responses)

    assert seen(first) == [(pb.CHANGE_KIND_CREATE, "g1")]


async def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="unknown kind 'pod' to watch: use cluster, node, service"):
        await anext(make_desk().control.watch(pb.WatchRequest(kinds=["pod"])))


async def test_secrets_do_not_leave_by_the_watch() -> None:
    cluster = a_cluster(root_ca=pb.RootCA(private_key_pem=b"root-key"))
    web = a_service("web")
    web.spec.task_template.container_spec.pull_auth = b"hunter2"
    web.previous_spec.CopyFrom(web.spec)
    desk = make_desk(cluster, web, a_task(web), a_secret("key", b"hidden"))

    async with aclosing(desk.control.watch(pb.WatchRequest())) as responses:
        shown = (await anext(responses)).SerializeToString()

    assert not [secret for secret in (b"root-key", b"hunter2", b"hidden") if secret in shown]


async def test_a_large_snapshot_comes_in_pieces_of_which_the_first_is_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch_module, "RESPONSE_BYTES_MAX", 100)
    desk = make_desk(*(a_service(f"web{n}") for n in range(5)))

    async with aclosing(desk.control.watch(pb.WatchRequest())) as responses:
        pieces = [await anext(responses)]
        while sum(len(p.events) for p in pieces) < 5:
            pieces.append(await anext(responses))

    assert len(pieces) > 1
    assert [p.snapshot for p in pieces] == [True] + [False] * (len(pieces) - 1)


async def test_a_slow_reader_gets_a_new_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_watch, "QUEUE_CHANGES_MAX", 2)
    desk = make_desk()

    async with aclosing(desk.control.watch(pb.WatchRequest())) as responses:
        await anext(responses)
        for number in range(4):
            await created(desk, a_spec(f"web{number}"))
        again = await anext(responses)
        await created(desk, a_spec("last"))
        after = await anext(responses)

    assert again.snapshot
    assert len(again.events) == 4
    assert not after.snapshot
    assert len(after.events) == 1


async def test_a_watch_that_is_closed_leaves_no_watcher_behind() -> None:
    desk = make_desk()

    async with aclosing(desk.control.watch(pb.WatchRequest())) as responses:
        await anext(responses)

    assert not desk.store._hub._watchers


def put(desk: Desk, slot: int) -> None:
    """Creates, or replaces, the task of a slot without giving others a turn."""

    def change(transaction: Transaction) -> None:
        current = transaction.get(pb.Task, f"t{slot}")
        if current is None:
            transaction.create(pb.Task(id=f"t{slot}"))
            return
        changed = pb.Task()
        changed.CopyFrom(current)
        changed.slot += 1
        transaction.update(changed)

    _run_at_once(desk.store.update(change))


def drop(desk: Desk, slot: int) -> None:
    if desk.store.view.tasks.get(f"t{slot}") is not None:
        _run_at_once(drop_one(desk, pb.Task, f"t{slot}"))


def _run_at_once(coroutine: object) -> None:
    with pytest.raises(StopIteration):
        coroutine.send(None)  # type: ignore[attr-defined]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 3)),
        st.tuples(st.just("drop"), st.integers(0, 3)),
        st.tuples(st.just("read"), st.just(0)),
        st.tuples(st.just("lose"), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(before=st.integers(0, 4), steps=STEPS, bytes_max=st.sampled_from([1, 1_000_000]))
def test_who_follows_the_watch_has_the_stores_state_whatever_happens_when(
    before: int, steps: list[tuple[str, int]], bytes_max: int
) -> None:
    async def follow() -> None:
        desk = make_desk(*(pb.Task(id=f"t{slot}") for slot in range(before)))
        copy: dict[str, pb.Task] = {}
        async with aclosing(desk.control.watch(pb.WatchRequest(kinds=["task"]))) as responses:
            take(copy, await anext(responses))
            for step, slot in steps:
                if step == "put":
                    put(desk, slot)
                elif step == "drop":
                    drop(desk, slot)
                elif step == "lose":
                    desk.store._hub.overflow_all()
                else:
                    # A reader waits for ever where nothing happens.
                    put(desk, slot)
                    take(copy, await anext(responses))
            # A last change, so that there is something to wait for.
            _run_at_once(desk.store.update(lambda t: t.create(pb.Task(id="last"))))
            while "last" not in copy:
                take(copy, await anext(responses))

            assert copy == {t.id: t for t in desk.store.view.tasks}

    original = watch_module.RESPONSE_BYTES_MAX
    watch_module.RESPONSE_BYTES_MAX = bytes_max
    try:
        asyncio.run(follow())
    finally:
        watch_module.RESPONSE_BYTES_MAX = original


def take(copy: dict[str, pb.Task], response: pb.WatchResponse) -> None:
    if response.snapshot:
        copy.clear()
    for event in response.events:
        task = event.object.task
        if event.kind == pb.CHANGE_KIND_DELETE:
            del copy[task.id]
        else:
            copy[task.id] = task


# ---- logs


async def lines(desk: Desk, reference: str, options: pb.LogOptions = BOTH) -> list[bytes]:
    request = pb.ServiceLogsRequest(reference=reference, options=options)
    return [line.data async for r in desk.control.service_logs(request) for line in r.lines]


async def test_the_logs_of_a_service_or_a_task_are_collected() -> None:
    web = a_service("web", id="w")
    desk = make_desk(web, a_task(web, id="t1"))

    assert await lines(desk, "web") == [b"first", b"second"]
    assert await lines(desk, "t1") == [b"first", b"second"]
    assert desk.logs.asked == [("w", []), (None, ["t1"])]


async def test_logs_of_nothing_known_are_refused() -> None:
    with pytest.raises(NotFound, match=r"^no such task or service: web$"):
        await lines(make_desk(), "web")


async def test_logs_without_a_stream_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^Bad parameters: you must choose at least one stream$"):
        await lines(make_desk(a_service("web")), "web", pb.LogOptions())


async def test_logs_are_the_leaders() -> None:
    desk = make_desk(a_service("web"))
    desk.control.log_source = None

    with pytest.raises(NotLeader):
        await lines(desk, "web")


async def test_a_reader_of_logs_who_leaves_ends_the_collecting() -> None:
    desk = make_desk(a_service("web"))

    request = pb.ServiceLogsRequest(reference="web", options=BOTH)
    async with aclosing(desk.control.service_logs(request)) as responses:
        await anext(responses)

    assert desk.logs.closed == 1
