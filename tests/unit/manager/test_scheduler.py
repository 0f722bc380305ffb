"""Where tasks go, and what they are told when they can go nowhere."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from swarmlet.api import pb
from swarmlet.manager.scheduler.ledger import Ledger
from swarmlet.manager.scheduler.scheduler import KEY, TASKS_PER_PASS_MAX, Scheduler
from swarmlet.store.store import Store
from swarmlet.store.tables import StoredObject
from tests.builders import GIB, NOW, a_node, a_service, a_task, make_store
from tests.unit.manager.harness import Cluster, now_or_never


def a_waiting_task(service: pb.Service, slot: int = 1, **fields: Any) -> pb.Task:
    return a_task(service, slot, pb.TASK_STATE_PENDING, **fields)


def schedule(*objects: StoredObject) -> Store:
    """A store in which the scheduler has done its work once."""
    store = make_store(*objects)
    plan = Scheduler().plan(store.view, KEY, NOW)
    now_or_never(store.batch(plan.edits))
    return store


def placed(store: Store, service: pb.Service) -> dict[str, int]:
    return Counter(t.node_id for t in store.view.tasks.find("service", service.id) if t.node_id)


def the_error(store: Store, service: pb.Service) -> str:
    (error,) = {t.status.err for t in store.view.tasks.find("service", service.id) if not t.node_id}
    return error


def reserving(memory: int = 0, cpus: float = 0) -> pb.TaskSpec:
    spec = pb.TaskSpec()
    spec.resources.reservations.memory_bytes = memory
    spec.resources.reservations.nano_cpus = int(cpus * 1_000_000_000)
    return spec


def test_a_waiting_task_is_assigned_to_a_node() -> None:
    node, service = a_node(), a_service()
    store = schedule(node, service, a_waiting_task(service))

    (task,) = store.view.tasks
    assert task.node_id == node.id
    assert task.status.state == pb.TASK_STATE_ASSIGNED
    assert task.status.message == "scheduler assigned task to node"


def test_a_task_that_is_only_to_be_prepared_is_placed_too() -> None:
    node, service = a_node(), a_service()
    store = schedule(node, service, a_waiting_task(service, desired=pb.TASK_STATE_READY))

    assert placed(store, service) == {node.id: 1}


def test_a_task_that_is_no_longer_wanted_is_not_placed() -> None:
    node, service = a_node(), a_service()
    store = schedule(node, service, a_waiting_task(service, desired=pb.TASK_STATE_SHUTDOWN))

    assert placed(store, service) == {}


def test_nodes_with_fewer_tasks_of_the_service_come_first_then_those_with_fewer_tasks() -> None:
    busy, idle = a_node("busy"), a_node("idle")
    web, other = a_service("web"), a_service("other")
    tasks = [a_task(other, i, node_id=busy.id) for i in range(1, 4)]
    store = schedule(busy, idle, web, other, *tasks, a_waiting_task(web))
    assert placed(store, web) == {idle.id: 1}

    own = [a_task(web, 7, node_id=idle.id)]
    store = schedule(busy, idle, web, other, *tasks, *own, a_waiting_task(web))
    assert placed(store, web) == {idle.id: 1, busy.id: 1}


def test_a_burst_is_spread_evenly_in_one_pass() -> None:
    nodes, service = [a_node(f"n{i}") for i in range(10)], a_service()
    store = schedule(*nodes, service, *(a_waiting_task(service, i) for i in range(1, 101)))

    assert set(placed(store, service).values()) == {10}
    assert len(placed(store, service)) == 10


def test_the_same_state_is_always_scheduled_in_the_same_way() -> None:
    objects = [a_node(f"n{i}") for i in range(7)]
    service = a_service()
    tasks = [a_waiting_task(service, i) for i in range(1, 5)]

    first = placed(schedule(*objects, service, *tasks), service)
    second = placed(schedule(*reversed(objects), service, *reversed(tasks)), service)

    assert first == second


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([], "no suitable node"),
        ([a_node(state=pb.NODE_STATE_DOWN)], "no suitable node (1 node not available for new tasks)"),
        (
            [a_node(state=pb.NODE_STATE_DOWN), a_node(availability=pb.NODE_AVAILABILITY_PAUSE)],
            "no suitable node (2 nodes not available for new tasks)",
        ),
        (
            [a_node(memory=1), a_node(memory=1), a_node(availability=pb.NODE_AVAILABILITY_DRAIN)],
            "no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks)",
        ),
        ([a_node(cpus=0.5)], "no suitable node (insufficient resources on 1 node)"),
        (
            [a_node(labels={"zone": "west"})],
            "no suitable node (scheduling constraints not satisfied on 1 node)",
        ),
    ],
)
def test_a_task_that_fits_nowhere_is_told_why(objects: list[pb.Node], message: str) -> None:
    template = reserving(memory=GIB, cpus=1)
    template.placement.constraints.append("node.labels.zone != west")
    service = a_service(task_template=template)
    store = schedule(*objects, service, a_waiting_task(service))

    assert the_error(store, service) == message
    assert next(iter(store.view.tasks)).status.state == pb.TASK_STATE_PENDING


def test_the_reason_is_written_once() -> None:
    service = a_service()
    store = schedule(service, a_waiting_task(service))

    assert Scheduler().plan(store.view, KEY, NOW).edits == []


def test_reservations_are_kept_within_what_a_node_has() -> None:
    service = a_service(task_template=reserving(memory=3 * GIB))
    node = a_node(memory=8 * GIB)
    store = schedule(node, service, *(a_waiting_task(service, i) for i in range(1, 6)))

    assert placed(store, service) == {node.id: 2}
    assert the_error(store, service) == "no suitable node (insufficient resources on 1 node)"


def test_a_task_that_is_still_stopping_keeps_its_reservation() -> None:
    service = a_service(task_template=reserving(memory=5 * GIB))
    node = a_node(memory=8 * GIB)
    old = a_task(service, desired=pb.TASK_STATE_SHUTDOWN, node_id=node.id)
    store = schedule(node, service, old, a_waiting_task(service))

    assert the_error(store, service) == "no suitable node (insufficient resources on 1 node)"


def test_an_ended_task_reserves_nothing() -> None:
    service = a_service(task_template=reserving(memory=5 * GIB))
    node = a_node(memory=8 * GIB)
    old = a_task(service, 1, pb.TASK_STATE_FAILED, pb.TASK_STATE_SHUTDOWN, node.id)
    store = schedule(node, service, old, a_waiting_task(service, 2))

    assert placed(store, service) == {node.id: 2}


def test_generic_resources_are_counted_by_kind() -> None:
    template = pb.TaskSpec()
    template.resources.reservations.generic_resources.add().discrete.CopyFrom(
        pb.DiscreteGenericResource(kind="gpu", value=2)
    )
    service, node = a_service(task_template=template), a_node()
    for name in ("one", "two", "three"):
        node.description.resources.generic_resources.add().named.CopyFrom(
            pb.NamedGenericResource(kind="gpu", value=name)
        )
    store = schedule(node, service, a_waiting_task(service, 1), a_waiting_task(service, 2))

    assert placed(store, service) == {node.id: 1}
    assert the_error(store, service) == "no suitable node (insufficient resources on 1 node)"


def test_the_platform_of_the_image_has_to_be_the_nodes() -> None:
    template = pb.TaskSpec(
        placement=pb.Placement(
            platforms=[
                pb.Platform(os="linux", architecture="aarch64"),
                pb.Platform(os="linux", architecture="amd64"),
            ]
        )
    )
    service, node = a_service(task_template=template), a_node()
    assert placed(schedule(node, service, a_waiting_task(service)), service) == {node.id: 1}

    del template.placement.platforms[1]
    other = a_service("other", task_template=template)
    store = schedule(node, other, a_waiting_task(other))
    assert the_error(store, other) == "no suitable node (unsupported platform on 1 node)"


def test_a_host_port_is_used_once_per_node() -> None:
    service, nodes = a_service(), [a_node("a"), a_node("b")]
    endpoint = pb.Endpoint()
    endpoint.ports.add(target_port=80, published_port=8080, publish_mode=pb.PUBLISH_MODE_HOST)
    tasks = [a_waiting_task(service, i, endpoint=endpoint) for i in range(1, 4)]
    store = schedule(*nodes, service, *tasks)

    assert placed(store, service) == {n.id: 1 for n in nodes}
    assert the_error(store, service) == "no suitable node (host-mode port already in use on 2 nodes)"


def test_max_replicas_per_node_is_kept() -> None:
    template = pb.TaskSpec(placement=pb.Placement(max_replicas=2))
    service, nodes = a_service(task_template=template), [a_node("a"), a_node("b")]
    store = schedule(*nodes, service, *(a_waiting_task(service, i) for i in range(1, 6)))

    assert placed(store, service) == {n.id: 2 for n in nodes}
    assert the_error(store, service) == "no suitable node (max replicas per node limit exceed)"


def spreading(*descriptors: str) -> pb.TaskSpec:
    preferences = [pb.PlacementPreference(spread=pb.SpreadOver(spread_descriptor=d)) for d in descriptors]
    return pb.TaskSpec(placement=pb.Placement(preferences=preferences))


def test_tasks_are_spread_over_the_values_of_a_label() -> None:
    east = [a_node(f"e{i}", labels={"zone": "east"}) for i in range(4)]
    west = [a_node("w", labels={"zone": "west"})]
    service = a_service(task_template=spreading("node.labels.zone"))
    store = schedule(*east, *west, service, *(a_waiting_task(service, i) for i in range(1, 9)))

    counts = placed(store, service)
    assert counts[west[0].id] == 4
    assert {counts[n.id] for n in east} == {1}


def test_several_preferences_divide_one_after_the_other() -> None:
    nodes = {
        (zone, rack): a_node(zone + rack, labels={"zone": zone})
        for zone in ("east", "west")
        for rack in ("1", "2")
    }
    for (_, rack), node in nodes.items():
        node.description.engine.labels["rack"] = rack
    service = a_service(task_template=spreading("node.labels.zone", "engine.labels.rack", "nonsense"))
    store = schedule(*nodes.values(), service, *(a_waiting_task(service, i) for i in range(1, 9)))

    assert set(placed(store, service).values()) == {2}


def test_a_branch_without_room_leaves_its_share_to_the_others() -> None:
    small = a_node("s", labels={"zone": "east"}, memory=GIB)
    large = a_node("l", labels={"zone": "west"}, memory=64 * GIB)
    template = spreading("node.labels.zone")
    template.resources.reservations.memory_bytes = GIB
    service = a_service(task_template=template)
    store = schedule(small, large, service, *(a_waiting_task(service, i) for i in range(1, 9)))

    assert placed(store, service) == {small.id: 1, large.id: 7}


def test_a_node_on_which_a_service_keeps_failing_is_avoided_for_a_while() -> None:
    service, bad, good = a_service(), a_node("bad"), a_node("good")
    failed = [a_task(service, i, pb.TASK_STATE_FAILED, pb.TASK_STATE_SHUTDOWN, bad.id) for i in range(1, 6)]
    others = [a_task(service, i, node_id=good.id) for i in range(10, 13)]
    store = make_store(service, bad, good, *failed, *others, a_waiting_task(service, 20))

    now_or_never(store.batch(Scheduler().plan(store.view, KEY, NOW).edits))
    assert placed(store, service)[good.id] == 4

    store = make_store(service, bad, good, *failed, *others, a_waiting_task(service, 20))
    later = NOW + timedelta(minutes=6)
    now_or_never(store.batch(Scheduler().plan(store.view, KEY, later).edits))
    assert placed(store, service)[good.id] == 3


def test_a_large_burst_is_placed_in_several_passes() -> None:
    nodes, service = [a_node(f"n{i}") for i in range(3)], a_service()
    count = TASKS_PER_PASS_MAX + 110
    store = make_store(*nodes, service, *(a_waiting_task(service, i) for i in range(1, count + 1)))
    scheduler = Scheduler()

    plan = scheduler.plan(store.view, KEY, NOW)
    assert len(plan.edits) == TASKS_PER_PASS_MAX
    assert plan.look_again == NOW
    now_or_never(store.batch(plan.edits))
    now_or_never(store.batch(scheduler.plan(store.view, KEY, NOW).edits))

    assert set(placed(store, service).values()) == {count // 3}


def test_a_plan_that_was_not_committed_books_nothing() -> None:
    service = a_service(task_template=reserving(memory=5 * GIB))
    store = make_store(a_node(memory=8 * GIB), service, a_waiting_task(service))
    scheduler = Scheduler()

    scheduler.plan(store.view, KEY, NOW)
    now_or_never(store.batch(scheduler.plan(store.view, KEY, NOW).edits))

    assert sum(placed(store, service).values()) == 1


def test_a_node_that_changed_meanwhile_is_not_given_the_task() -> None:
    node, service = a_node(), a_service()
    store = make_store(node, service, a_waiting_task(service))
    plan = Scheduler().plan(store.view, KEY, NOW)

    def drain(tx: Any) -> None:
        changed = pb.Node()
        changed.CopyFrom(store.view.nodes.get(node.id) or node)
        changed.spec.availability = pb.NODE_AVAILABILITY_DRAIN
        tx.update(changed)

    now_or_never(store.update(drain))
    now_or_never(store.batch(plan.edits))

    assert placed(store, service) == {}


def test_accounts_of_nodes_on_which_nothing_changed_are_kept() -> None:
    nodes, service = [a_node("a"), a_node("b")], a_service()
    task = a_task(service, node_id=nodes[0].id)
    store = make_store(*nodes, service, task)
    ledger = Ledger()
    before = ledger.accounts(store.view)

    def stop(tx: Any) -> None:
        changed = pb.Task()
        changed.CopyFrom(store.view.tasks.get(task.id) or task)
        changed.desired_state = pb.TASK_STATE_SHUTDOWN
        tx.update(changed)

    now_or_never(store.update(stop))
    after = ledger.accounts(store.view)

    assert after[nodes[1].id] is before[nodes[1].id]
    assert after[nodes[0].id] is not before[nodes[0].id]
    assert (before[nodes[0].id].tasks, after[nodes[0].id].tasks) == (1, 0)


def test_a_waiting_task_is_placed_when_room_is_made() -> None:
    service = a_service("web", replicas=2, task_template=reserving(memory=5 * GIB))
    first, second = a_node("a", memory=8 * GIB), a_node("b", memory=8 * GIB)
    with Cluster(first, service) as cluster:
        cluster.run(1)
        assert len(cluster.running()) == 1

        cluster.add(second)
        cluster.run(1)

        assert len(cluster.running()) == 2


def test_a_task_whose_node_was_removed_before_it_was_confirmed_waits_quietly() -> None:
    service = a_service()
    store = schedule(service, a_waiting_task(service, node_id="gone"))

    (task,) = store.view.tasks
    assert task.status.state == pb.TASK_STATE_PENDING
    assert task.status.err == ""
