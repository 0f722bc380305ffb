"""Tasks through the door: found and listed."""

from __future__ import annotations

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument, NotFound
from swarmlet.control import presentation
from tests.builders import a_global_service, a_node, a_service, a_task
from tests.unit.control.fakes import Desk, make_desk


def a_busy_desk() -> Desk:
    web, agent = a_service("web", id="web-id"), a_global_service("agent", id="agent-id")
    old = a_task(web, 1, pb.TASK_STATE_SHUTDOWN, pb.TASK_STATE_SHUTDOWN, "one", id="t1")
    old.spec.container_spec.image = "image:0"
    old.spec_version.index = 0
    return make_desk(
        web,
        agent,
        a_node("alpha", id="one"),
        a_node("beta", id="two"),
        old,
        a_task(web, 1, node_id="one", id="t2", labels={"tier": "front"}),
        a_task(web, 2, node_id="two", id="t3"),
        a_task(agent, 0, pb.TASK_STATE_STARTING, node_id="two", id="x4"),
    )


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ([], ["t1", "t2", "t3", "x4"]),
        ([("service", ["web"])], ["t1", "t2", "t3"]),
        ([("service", ["web", "agent"])], ["t1", "t2", "t3", "x4"]),
        ([("service", ["web"]), ("node", ["beta"])], ["t3"]),
        ([("node", ["self"])], ["t1", "t2"]),
        ([("node", ["two"]), ("desired-state", ["running"])], ["t3", "x4"]),
        ([("desired-state", ["shutdown"])], ["t1"]),
        ([("desired-state", ["shutdown", "RUNNING"])], ["t1", "t2", "t3", "x4"]),
        ([("id", ["t"])], ["t1", "t2", "t3"]),
        ([("name", ["web.1"])], ["t1", "t2"]),
        ([("name", ["agent.two"])], ["x4"]),
        ([("label", ["tier=front"])], ["t2"]),
        ([("runtime", ["container"])], ["t1", "t2", "t3", "x4"]),
        ([("runtime", ["plugin"])], []),
        ([("service", ["web"]), ("_up-to-date", ["true"])], ["t2", "t3"]),
    ],
)
async def test_tasks_are_listed_by_filter(filters: list[tuple[str, list[str]]], ids: list[str]) -> None:
    request = pb.ListTasksRequest(filters=[pb.Filter(key=k, values=v) for k, v in filters])

    listed = await a_busy_desk().control.list_tasks(request)

    assert [t.id for t in listed.tasks] == ids


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("foo", "x", "invalid filter 'foo'"),
        ("desired-state", "asleep", "invalid desired-state filter: 'asleep'"),
    ],
)
async def test_an_unknown_task_filter_is_refused(key: str, value: str, text: str) -> None:
    request = pb.ListTasksRequest(filters=[pb.Filter(key=key, values=[value])])

    with pytest.raises(InvalidArgument, match=f"^{text}$"):
        await make_desk().control.list_tasks(request)


@pytest.mark.parametrize(("key", "text"), [("service", "service x not found"), ("node", "node x not found")])
async def test_a_filter_that_names_nothing_is_an_error(key: str, text: str) -> None:
    request = pb.ListTasksRequest(filters=[pb.Filter(key=key, values=["x"])])

    with pytest.raises(NotFound, match=f"^{text}$"):
        await make_desk().control.list_tasks(request)


async def test_a_task_of_a_removed_service_is_not_up_to_date() -> None:
    desk = make_desk(a_task(a_service("gone")))
    request = pb.ListTasksRequest(filters=[pb.Filter(key="_up-to-date", values=["true"])])

    assert not (await desk.control.list_tasks(request)).tasks


async def test_a_task_is_found_by_id_full_name_and_prefix() -> None:
    desk = a_busy_desk()

    async def found(reference: str) -> str:
        return (await desk.control.get_task(pb.GetTaskRequest(reference=reference))).task.id

    assert await found("t2") == "t2"
    assert await found("web.1.t2") == "t2"
    assert await found("x") == "x4"
    with pytest.raises(InvalidArgument, match=r"^task t is ambiguous \(3 matches found\)$"):
        await found("t")
    with pytest.raises(NotFound, match=r"^task web.2.t2 not found$"):
        await found("web.2.t2")


async def test_a_tasks_registry_credentials_are_not_shown() -> None:
    web = a_service("web")
    web.spec.task_template.container_spec.pull_auth = b"hunter2"
    desk = make_desk(web, a_task(web, id="t1"))

    got = await desk.control.get_task(pb.GetTaskRequest(reference="t1"))
    listed = await desk.control.list_tasks(pb.ListTasksRequest())

    assert b"hunter2" not in got.SerializeToString() + listed.SerializeToString()
    stored = desk.store.view.tasks.get("t1")
    assert stored is not None
    assert stored.spec.container_spec.pull_auth == b"hunter2"


async def test_a_long_list_is_one_consistent_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presentation, "OBJECTS_AT_A_TIME", 2)
    desk = a_busy_desk()
    listing = desk.control.list_tasks(pb.ListTasksRequest())

    listing.send(None)
    await desk.store.update(lambda transaction: transaction.delete(pb.Task, "x4"))
    ids = [t.id for t in (await _resumed(listing)).tasks]

    assert ids == ["t1", "t2", "t3", "x4"]


async def _resumed(coroutine: object) -> pb.ListTasksResponse:
    """What a coroutine that was begun by hand returns, run to its end."""
    try:
        while True:
            coroutine.send(None)  # type: ignore[attr-defined]
    except StopIteration as end:
        result: pb.ListTasksResponse = end.value
        return result
