"""Nodes through the door: found, listed, changed, demoted with care, removed with more."""

from __future__ import annotations

import re

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound
from swarmlet.control import nodes as nodes_module
from tests.builders import a_node, a_service, a_task
from tests.unit.control.fakes import Desk, FakeAgreement, make_desk

MANAGER = pb.NODE_ROLE_MANAGER
WORKER = pb.NODE_ROLE_WORKER


def a_manager(node_id: str) -> pb.Node:
    return a_node(node_id, role=MANAGER, id=node_id)


def three_managers() -> Desk:
    names = ["one", "two", "three"]
    return make_desk(*map(a_manager, names), agreement=FakeAgreement("one", names))


async def updated(desk: Desk, reference: str, **spec: object) -> pb.Node:
    node = (await desk.control.get_node(pb.GetNodeRequest(reference=reference))).node
    asked = pb.NodeSpec()
    asked.CopyFrom(node.spec)
    for field, value in spec.items():
        setattr(asked, field, value)
    answer = await desk.control.update_node(
        pb.UpdateNodeRequest(node_id=reference, version=node.version.index, spec=asked)
    )
    return answer.node


# ---- found and listed


async def test_a_node_is_found_by_id_hostname_prefix_and_self() -> None:
    desk = make_desk(a_node("alpha", id="one"), a_node("beta", id="two"), a_node("beta", id="three"))

    async def found(reference: str) -> str:
        return (await desk.control.get_node(pb.GetNodeRequest(reference=reference))).node.id

    assert await found("self") == "one"
    assert await found("alpha") == "one"
    assert await found("tw") == "two"
    with pytest.raises(InvalidArgument, match=r"^node beta is ambiguous \(2 matches found\)$"):
        await found("beta")
    with pytest.raises(NotFound, match=r"^node gamma not found$"):
        await found("gamma")


@pytest.mark.parametrize(
    ("key", "values", "hosts"),
    [
        ("name", ["al"], ["alpha"]),
        ("id", ["two", "th"], ["beta", "gamma"]),
        ("role", ["manager"], ["alpha"]),
        ("role", ["Worker", "manager"], ["alpha", "beta", "gamma"]),
        ("membership", ["accepted"], ["alpha", "beta", "gamma"]),
        ("membership", ["pending"], []),
        ("node.label", ["zone=east"], ["beta"]),
        ("node.label", ["zone"], ["beta", "gamma"]),
        ("label", ["disk=ssd"], ["gamma"]),
    ],
)
async def test_nodes_are_listed_by_filter(key: str, values: list[str], hosts: list[str]) -> None:
    gamma = a_node("gamma", id="three", labels={"zone": "west"})
    gamma.description.engine.labels["disk"] = "ssd"
    desk = make_desk(
        a_node("alpha", id="one", role=MANAGER), a_node("beta", id="two", labels={"zone": "east"}), gamma
    )

    listed = await desk.control.list_nodes(pb.ListNodesRequest(filters=[pb.Filter(key=key, values=values)]))

    assert [n.description.hostname for n in listed.nodes] == hosts


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("foo", "invalid filter 'foo'"),
        ("role", "invalid role filter: 'boss'"),
        ("membership", "invalid membership filter: 'boss'"),
    ],
)
async def test_an_unknown_node_filter_is_refused(key: str, text: str) -> None:
    request = pb.ListNodesRequest(filters=[pb.Filter(key=key, values=["boss"])])

    with pytest.raises(InvalidArgument, match=f"^{text}$"):
        await make_desk().control.list_nodes(request)


async def statuses(desk: Desk) -> dict[str, tuple[bool, int]]:
    listed = await desk.control.list_nodes(pb.ListNodesRequest())
    return {
        n.id: (n.manager_status.leader, n.manager_status.reachability)
        for n in listed.nodes
        if n.HasField("manager_status")
    }


async def test_the_leader_tells_which_managers_it_reaches() -> None:
    desk = three_managers()
    desk.agreement.reached = {"one", "two"}

    assert await statuses(desk) == {
        "one": (True, pb.REACHABILITY_REACHABLE),
        "two": (False, pb.REACHABILITY_REACHABLE),
        "three": (False, pb.REACHABILITY_UNREACHABLE),
    }


async def test_a_follower_goes_by_the_nodes_state() -> None:
    names = ["one", "two", "three"]
    nodes = list(map(a_manager, names))
    nodes[2].status.state = pb.NODE_STATE_DOWN
    desk = make_desk(*nodes, agreement=FakeAgreement("one", names))
    desk.agreement.elect("two")

    assert await statuses(desk) == {
        "one": (False, pb.REACHABILITY_REACHABLE),
        "two": (True, pb.REACHABILITY_REACHABLE),
        "three": (False, pb.REACHABILITY_UNREACHABLE),
    }


async def test_a_node_that_is_no_longer_a_member_has_no_manager_status() -> None:
    former = a_node("former", id="former")
    former.manager_status.reachability = pb.REACHABILITY_REACHABLE
    desk = make_desk(a_manager("one"), former)

    assert list(await statuses(desk)) == ["one"]


# ---- changed


async def test_availability_labels_and_role_can_be_changed() -> None:
    desk = make_desk(a_manager("one"), a_node("two", id="two"))

    await updated(desk, "two", availability=pb.NODE_AVAILABILITY_DRAIN)
    node = await updated(desk, "two", role=MANAGER)

    assert node.spec.availability == pb.NODE_AVAILABILITY_DRAIN
    assert node.spec.role == MANAGER


async def test_a_node_update_from_an_old_version_is_refused() -> None:
    desk = make_desk(a_node("two", id="two"))

    with pytest.raises(Conflict, match=r"^update out of sequence$"):
        await desk.control.update_node(pb.UpdateNodeRequest(node_id="two", version=99))


async def test_a_node_update_that_changes_nothing_writes_nothing() -> None:
    desk = make_desk(a_node("two", id="two"))
    before = desk.store.applied_index

    await updated(desk, "two")

    assert desk.store.applied_index == before


@pytest.mark.parametrize(
    ("field", "text"), [("role", "invalid Role: 9"), ("availability", "invalid Availability: 9")]
)
async def test_numbers_that_mean_nothing_are_refused(field: str, text: str) -> None:
    desk = make_desk(a_node("two", id="two"))

    with pytest.raises(InvalidArgument, match=text):
        await updated(desk, "two", **{field: 9})


async def test_the_last_manager_cannot_be_demoted() -> None:
    desk = make_desk(a_manager("one"), a_node("two"))

    with pytest.raises(FailedPrecondition, match=r"^attempting to demote the last manager of the swarm$"):
        await updated(desk, "one", role=WORKER)


async def test_a_demotion_that_would_lose_the_quorum_is_refused() -> None:
    desk = three_managers()
    desk.agreement.reached = {"one", "two"}

    with pytest.raises(FailedPrecondition, match="this would result in a loss of quorum"):
        await updated(desk, "two", role=WORKER)


async def test_a_manager_that_is_lost_can_be_demoted() -> None:
    desk = three_managers()
    desk.agreement.reached = {"one", "two"}

    node = await updated(desk, "three", role=WORKER)

    assert node.spec.role == WORKER


# ---- removed


async def test_a_node_that_is_ready_is_only_removed_by_force() -> None:
    desk = make_desk(a_manager("one"), a_node("two", id="two"))

    with pytest.raises(FailedPrecondition, match=re.escape("node two is not down and can't be removed")):
        await desk.control.remove_node(pb.RemoveNodeRequest(node_id="two"))
    await desk.control.remove_node(pb.RemoveNodeRequest(node_id="two", force=True))

    assert desk.store.view.nodes.get("two") is None


async def test_a_manager_is_not_removed_even_by_force() -> None:
    desk = three_managers()

    with pytest.raises(
        FailedPrecondition,
        match=re.escape(
            "node two is a cluster manager and is a member of the raft cluster. "
            "It must be demoted to worker before removal"
        ),
    ):
        await desk.control.remove_node(pb.RemoveNodeRequest(node_id="two", force=True))


async def test_an_unknown_node_is_not_removed() -> None:
    with pytest.raises(NotFound, match=r"^node two not found$"):
        await make_desk().control.remove_node(pb.RemoveNodeRequest(node_id="two"))


async def test_a_removal_that_is_repeated_gets_the_same_answer() -> None:
    desk = make_desk(a_node("two", id="two", state=pb.NODE_STATE_DOWN))
    request = pb.RemoveNodeRequest(operation_id="once", node_id="two")

    assert await desk.control.remove_node(request) == await desk.control.remove_node(request)


async def test_the_tasks_of_a_removed_node_are_orphaned_and_those_that_ended_stay() -> None:
    web = a_service("web")
    running = a_task(web, 1, node_id="two")
    failed = a_task(web, 2, pb.TASK_STATE_FAILED, node_id="two")
    elsewhere = a_task(web, 3, node_id="three")
    desk = make_desk(web, a_node("two", id="two", state=pb.NODE_STATE_DOWN), running, failed, elsewhere)
    before = desk.store.applied_index

    await desk.control.remove_node(pb.RemoveNodeRequest(node_id="two"))

    states = {t.id: t.status.state for t in desk.store.view.tasks}
    assert states == {
        running.id: pb.TASK_STATE_ORPHANED,
        failed.id: pb.TASK_STATE_FAILED,
        elsewhere.id: pb.TASK_STATE_RUNNING,
    }
    assert desk.store.applied_index == before + 1


async def test_more_tasks_than_fit_one_transaction_are_orphaned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes_module, "ORPHANS_BYTES_MAX", 1000)
    web = a_service("web")
    tasks = [a_task(web, slot, node_id="two") for slot in range(1, 50)]
    desk = make_desk(web, a_node("two", id="two", state=pb.NODE_STATE_DOWN), *tasks)

    await desk.control.remove_node(pb.RemoveNodeRequest(node_id="two"))

    assert {t.status.state for t in desk.store.view.tasks} == {pb.TASK_STATE_ORPHANED}
