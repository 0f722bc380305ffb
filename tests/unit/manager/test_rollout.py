"""Stories of updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from swarmlet.api import pb
from tests.builders import NOW, a_node, a_service
from tests.unit.manager.harness import Cluster

SECOND = 1_000_000_000


def a_web(replicas: int = 6, *, image: str = "image:1", policy: Any = None, **config: Any) -> pb.Service:
    """A service with an update config of its own."""
    config.setdefault("parallelism", 2)
    service = a_service("web", replicas=replicas, update_config=pb.UpdateConfig(**config))
    service.spec.task_template.container_spec.image = image
    if policy is not None:
        service.spec.task_template.restart_policy.CopyFrom(policy)
    return service


def settled(*services: pb.Service, nodes: int = 3) -> Cluster:
    """A cluster in which everything has been running for a while."""
    cluster = Cluster(*(a_node(f"n{i}") for i in range(nodes)), *services)
    cluster.run(30)
    return cluster


def update_state(cluster: Cluster) -> pb.UpdateState.ValueType:
    return cluster.service().update_status.state


def is_completed(cluster: Cluster) -> Callable[[], bool]:
    return lambda: update_state(cluster) == pb.UPDATE_STATE_COMPLETED


def is_paused(cluster: Cluster) -> Callable[[], bool]:
    return lambda: update_state(cluster) == pb.UPDATE_STATE_PAUSED


def at_least_serving(count: int) -> Callable[[Cluster], None]:
    def check(cluster: Cluster) -> None:
        serving = [t for t in cluster.serving() if t.desired_state == pb.TASK_STATE_RUNNING]
        assert len(serving) >= count, f"only {len(serving)} serve"

    return check


def test_an_update_replaces_all_tasks_and_says_so() -> None:
    with settled(a_web()) as cluster:
        cluster.update_service(image="image:2")
        cluster.settle()
        assert update_state(cluster) == pb.UPDATE_STATE_UPDATING
        assert cluster.service().update_status.message == "update in progress"
        assert cluster.service().update_status.HasField("started_at")

        cluster.run(60, until=is_completed(cluster))

        assert cluster.images() == ["image:2"] * 6
        assert [t.slot for t in cluster.running()] == [1, 2, 3, 4, 5, 6]
        assert cluster.service().update_status.message == "update completed"
        assert cluster.service().update_status.HasField("completed_at")


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_no_more_slots_than_the_parallelism_are_down_at_a_time(parallelism: int) -> None:
    with settled(a_web(parallelism=parallelism)) as cluster:
        cluster.checks.append(at_least_serving(6 - parallelism))

        cluster.update_service(image="image:2")
        cluster.run(60, until=is_completed(cluster))

        assert cluster.images() == ["image:2"] * 6


def test_parallelism_zero_replaces_all_at_once() -> None:
    with settled(a_web(parallelism=0)) as cluster:
        cluster.update_service(image="image:2")
        cluster.settle()

        assert all(t.spec.container_spec.image == "image:2" for t in cluster.wanted())


def test_without_an_update_config_slots_are_replaced_one_by_one() -> None:
    with settled(a_service("web", replicas=4)) as cluster:
        cluster.checks.append(at_least_serving(3))

        cluster.update_service(image="image:2")
        cluster.run(60, until=is_completed(cluster))

        assert cluster.images() == ["image:2"] * 4


def test_start_first_never_serves_with_fewer_than_the_replicas() -> None:
    with settled(a_web(order=pb.UPDATE_ORDER_START_FIRST)) as cluster:
        cluster.checks.append(at_least_serving(6))

        cluster.update_service(image="image:2")
        cluster.run(60, until=is_completed(cluster))

        assert cluster.images() == ["image:2"] * 6


def test_start_first_runs_no_third_task_when_updates_follow_each_other_quickly() -> None:
    def check(cluster: Cluster) -> None:
        slots = Counter(t.slot for t in cluster.serving())
        assert max(slots.values(), default=0) <= 2

    service = a_web(2, image="stubborn:1", parallelism=0, order=pb.UPDATE_ORDER_START_FIRST)
    with settled(service) as cluster:
        cluster.checks.extend([check, at_least_serving(2)])

        for number in range(2, 6):
            cluster.update_service(image=f"stubborn:{number}")
            cluster.run(0.8)
        cluster.run(60, until=is_completed(cluster))

        assert cluster.images() == ["stubborn:5"] * 2


def test_stop_first_prepares_the_new_task_while_the_old_one_stops() -> None:
    with settled(a_web(1, parallelism=1)) as cluster:
        cluster.update_service(image="image:2")
        cluster.run(0.25)

        old, new = cluster.tasks()
        assert old.desired_state == pb.TASK_STATE_SHUTDOWN
        assert old.status.state == pb.TASK_STATE_RUNNING
        assert new.desired_state == pb.TASK_STATE_READY
        assert new.status.state == pb.TASK_STATE_READY


def test_stop_first_never_runs_two_tasks_in_a_slot() -> None:
    def check(cluster: Cluster) -> None:
        slots = [t.slot for t in cluster.serving()]
        assert len(slots) == len(set(slots))

    with settled(a_web(parallelism=0)) as cluster:
        cluster.checks.append(check)

        cluster.update_service(image="image:2")
        cluster.run(60, until=is_completed(cluster))


def test_a_task_that_does_not_stop_is_not_waited_for_forever() -> None:
    service = a_web(1)
    service.spec.task_template.container_spec.stop_grace_period_ns = 5 * SECOND
    with settled(service) as cluster:
        (old,) = cluster.running()
        cluster.unreachable.add(old.node_id)

        cluster.update_service(image="image:2")
        cluster.run(60)
        assert cluster.wanted()[0].desired_state == pb.TASK_STATE_READY
        cluster.run(10)

        assert cluster.wanted()[0].desired_state == pb.TASK_STATE_RUNNING


def test_the_delay_passes_between_batches() -> None:
    with settled(a_web(4, delay_ns=20 * SECOND)) as cluster:
        cluster.update_service(image="image:2")

        cluster.run(19)
        assert cluster.images().count("image:2") == 2
        cluster.run(5)

        assert cluster.images().count("image:2") == 4


def test_an_update_is_complete_only_after_the_monitor() -> None:
    with settled(a_web(2, monitor_ns=30 * SECOND)) as cluster:
        cluster.update_service(image="image:2")
        cluster.run(25)
        assert cluster.images() == ["image:2"] * 2
        assert update_state(cluster) == pb.UPDATE_STATE_UPDATING

        cluster.run(10)
        assert update_state(cluster) == pb.UPDATE_STATE_COMPLETED


@pytest.mark.parametrize("image", ["crash", "missing", "short", "done"])
def test_a_failing_update_pauses_and_names_the_task(image: str) -> None:
    with settled(a_web(delay_ns=2 * SECOND)) as cluster:
        cluster.update_service(image=image)
        cluster.run(60, until=is_paused(cluster))

        failed = [t for t in cluster.tasks() if t.spec.container_spec.image == image]
        message = cluster.service().update_status.message
        assert message.startswith("update paused due to failure or early termination of task ")
        assert message.rpartition(" ")[2] in [t.id for t in failed]
        assert cluster.images().count("image:1") >= 4


def test_a_paused_update_goes_no_further() -> None:
    with settled(a_web()) as cluster:
        cluster.update_service(image="crash")
        cluster.run(60, until=is_paused(cluster))

        cluster.run(300)

        assert cluster.images().count("image:1") == 4
        assert update_state(cluster) == pb.UPDATE_STATE_PAUSED


def test_a_paused_update_that_is_resumed_goes_on_until_something_fails_again() -> None:
    with settled(a_web(delay_ns=3 * SECOND)) as cluster:
        cluster.update_service(image="crash")
        cluster.run(60, until=is_paused(cluster))
        first = cluster.service().update_status

        def resume(tx: Any) -> None:
            service = pb.Service()
            service.CopyFrom(cluster.service())
            service.ClearField("update_status")
            tx.update(service)

        cluster.run(1)
        cluster.commit(resume)
        cluster.settle()
        assert update_state(cluster) == pb.UPDATE_STATE_UPDATING

        cluster.run(60, until=is_paused(cluster))
        assert cluster.service().update_status.message != first.message


def test_a_paused_update_keeps_to_the_old_revision_where_that_still_runs() -> None:
    with settled(a_web()) as cluster:
        cluster.update_service(image="crash")
        cluster.run(60, until=is_paused(cluster))
        good = next(t for t in cluster.running() if t.spec.container_spec.image == "image:1")

        cluster.report(good, pb.TASK_STATE_FAILED)
        cluster.run(20)

        assert cluster.images().count("image:1") == 4


def test_a_failure_before_it_was_noticed_is_counted_by_a_new_leader() -> None:
    with settled(a_web()) as cluster:
        cluster.update_service(image="short")
        cluster.run(1.0)
        running = [t for t in cluster.running() if t.spec.container_spec.image == "short"]
        for task in running:
            cluster.report(task, pb.TASK_STATE_FAILED)

        cluster.change_leader()
        cluster.settle()

        assert update_state(cluster) == pb.UPDATE_STATE_PAUSED


def test_a_task_that_outlived_the_monitor_does_not_pause_the_update() -> None:
    with settled(a_web(3, parallelism=1, delay_ns=30 * SECOND)) as cluster:
        cluster.update_service(image="image:2")
        cluster.run(20)
        (first,) = [t for t in cluster.running() if t.spec.container_spec.image == "image:2"]

        cluster.report(first, pb.TASK_STATE_FAILED)
        cluster.run(120)

        assert update_state(cluster) == pb.UPDATE_STATE_COMPLETED


def test_failures_up_to_the_ratio_are_borne() -> None:
    with settled(a_web(10, max_failure_ratio=0.15, parallelism=1)) as cluster:
        cluster.update_service(image="image:2")
        cluster.run(1.0)
        first = next(t for t in cluster.running() if t.spec.container_spec.image == "image:2")

        cluster.report(first, pb.TASK_STATE_FAILED)
        cluster.run(120)

        assert update_state(cluster) == pb.UPDATE_STATE_COMPLETED
        assert cluster.images() == ["image:2"] * 10


def test_failure_action_continue_goes_on_to_the_end() -> None:
    with settled(a_web(failure_action=pb.FAILURE_ACTION_CONTINUE)) as cluster:
        cluster.update_service(image="crash")

        cluster.run(120, until=is_completed(cluster))

        assert all(t.spec.container_spec.image == "crash" for t in cluster.wanted())


def test_failure_action_rollback_puts_the_previous_revision_back() -> None:
    with settled(a_web(failure_action=pb.FAILURE_ACTION_ROLLBACK)) as cluster:
        cluster.update_service(image="crash")
        cluster.run(60, until=lambda: update_state(cluster) == pb.UPDATE_STATE_ROLLBACK_STARTED)
        assert cluster.service().update_status.message.startswith(
            "update rolled back due to failure or early termination of task "
        )

        cluster.run(120, until=lambda: update_state(cluster) == pb.UPDATE_STATE_ROLLBACK_COMPLETED)

        assert cluster.images() == ["image:1"] * 6
        assert cluster.service().update_status.message == "rollback completed"


def test_a_rollback_ends_also_where_the_old_task_was_never_stopped() -> None:
    service = a_web(3, failure_action=pb.FAILURE_ACTION_ROLLBACK, order=pb.UPDATE_ORDER_START_FIRST)
    with settled(service) as cluster:
        before = {t.id for t in cluster.running()}

        cluster.update_service(image="crash:2")
        cluster.run(60, until=lambda: update_state(cluster) == pb.UPDATE_STATE_ROLLBACK_COMPLETED)

        assert {t.id for t in cluster.running()} == before


def test_a_rollback_that_fails_too_is_paused() -> None:
    service = a_web(failure_action=pb.FAILURE_ACTION_ROLLBACK)
    with settled(service) as cluster:
        cluster.update_service(image="crash", rollback_config=pb.UpdateConfig(parallelism=1))
        cluster.run(60, until=lambda: update_state(cluster) == pb.UPDATE_STATE_ROLLBACK_STARTED)
        tasks = [t for t in cluster.wanted() if t.status.state < pb.TASK_STATE_RUNNING]
        for task in tasks:
            cluster.report(task, pb.TASK_STATE_FAILED)
        cluster.run(20)

        assert update_state(cluster) == pb.UPDATE_STATE_ROLLBACK_PAUSED
        assert cluster.service().update_status.message.startswith("rollback paused due to failure")


def test_without_a_previous_revision_a_rollback_is_a_pause() -> None:
    with settled(a_web(failure_action=pb.FAILURE_ACTION_ROLLBACK)) as cluster:
        cluster.update_service(image="crash")

        def forget(tx: Any) -> None:
            service = pb.Service()
            service.CopyFrom(cluster.service())
            service.ClearField("previous_spec")
            tx.update(service)

        cluster.commit(forget)
        cluster.run(60, until=is_paused(cluster))


def test_a_new_update_takes_over_at_once() -> None:
    with settled(a_web()) as cluster:
        cluster.update_service(image="slow:2")
        cluster.run(3)
        assert any(t.spec.container_spec.image == "slow:2" for t in cluster.wanted())

        cluster.update_service(image="image:3")
        cluster.settle()

        assert not any(t.spec.container_spec.image == "slow:2" for t in cluster.wanted())
        cluster.run(60, until=is_completed(cluster))
        assert cluster.images() == ["image:3"] * 6


def test_a_new_update_takes_over_from_one_that_can_never_be_placed() -> None:
    with settled(a_web(parallelism=1)) as cluster:
        impossible = pb.TaskSpec(placement=pb.Placement(constraints=["node.labels.no==where"]))
        cluster.update_service(task_template=impossible)
        cluster.run(60)
        assert update_state(cluster) == pb.UPDATE_STATE_UPDATING
        assert len(cluster.running()) == 5

        def undo(tx: Any) -> None:
            service = pb.Service()
            service.CopyFrom(cluster.service())
            service.ClearField("update_status")
            service.spec.task_template.placement.Clear()
            service.spec.task_template.container_spec.image = "image:2"
            service.spec_version.index = 1000
            tx.update(service)

        cluster.commit(undo)
        cluster.run(60, until=is_completed(cluster))

        assert cluster.images() == ["image:2"] * 6


def test_going_back_to_an_earlier_revision_is_an_update_like_any() -> None:
    with settled(a_web()) as cluster:
        cluster.update_service(image="image:2")
        cluster.run(60, until=is_completed(cluster))
        cluster.checks.append(at_least_serving(4))

        cluster.update_service(image="image:1")
        cluster.run(60, until=is_completed(cluster))

        assert cluster.images() == ["image:1"] * 6


def test_slots_in_which_nothing_serves_are_replaced_at_once_and_first() -> None:
    with settled(a_web(4, image="missing", parallelism=1)) as cluster:
        assert cluster.running() == []

        cluster.update_service(image="image:2")
        cluster.run(1)

        assert cluster.images() == ["image:2"] * 4


def test_a_slot_that_was_given_up_is_updated_too() -> None:
    policy = pb.RestartPolicy(condition=pb.RESTART_CONDITION_NONE)
    with settled(a_web(2, image="crash", policy=policy)) as cluster:
        assert cluster.wanted() == []

        cluster.update_service(image="image:2")
        cluster.run(60, until=is_completed(cluster))

        assert cluster.images() == ["image:2"] * 2


def test_start_first_keeps_the_old_task_when_the_new_one_is_given_up() -> None:
    policy = pb.RestartPolicy(condition=pb.RESTART_CONDITION_NONE)
    service = a_web(
        3,
        policy=policy,
        order=pb.UPDATE_ORDER_START_FIRST,
        failure_action=pb.FAILURE_ACTION_CONTINUE,
    )
    with settled(service) as cluster:
        cluster.checks.append(at_least_serving(3))

        cluster.update_service(image="crash")
        cluster.run(120, until=is_completed(cluster))
        cluster.run(60)

        assert cluster.images() == ["image:1"] * 3


def test_an_update_of_replicas_alone_replaces_nothing() -> None:
    with settled(a_web(3)) as cluster:
        before = {t.id for t in cluster.running()}

        cluster.update_service(replicas=5)
        cluster.run(30)

        assert before < {t.id for t in cluster.running()}
        assert len(cluster.running()) == 5


def test_an_update_of_the_update_config_alone_replaces_nothing() -> None:
    with settled(a_web(3)) as cluster:
        before = {t.id for t in cluster.running()}

        cluster.update_service(update_config=pb.UpdateConfig(delay_ns=SECOND))
        cluster.run(30)

        assert {t.id for t in cluster.running()} == before
        assert update_state(cluster) == pb.UPDATE_STATE_NONE


def test_forcing_an_update_replaces_all() -> None:
    with settled(a_web(3)) as cluster:
        before = {t.id for t in cluster.running()}

        cluster.update_service(task_template=pb.TaskSpec(force_update=1))
        cluster.run(60, until=is_completed(cluster))

        assert before.isdisjoint(t.id for t in cluster.running())


def test_a_constraint_that_the_nodes_meet_already_replaces_nothing() -> None:
    node = a_node("a", labels={"disk": "fast"})
    with Cluster(node, a_service("web", replicas=2)) as cluster:
        cluster.run(10)
        before = {t.id for t in cluster.running()}

        fast = pb.TaskSpec(placement=pb.Placement(constraints=["node.labels.disk==fast"]))
        cluster.update_service(task_template=fast)
        cluster.run(30)

        assert {t.id for t in cluster.running()} == before


def test_a_constraint_that_a_node_does_not_meet_moves_its_tasks_in_turn() -> None:
    nodes = [a_node("a", labels={"disk": "fast"}), a_node("b")]
    with Cluster(*nodes, a_web(4, parallelism=1)) as cluster:
        cluster.run(10)
        cluster.checks.append(at_least_serving(3))

        fast = pb.TaskSpec(placement=pb.Placement(constraints=["node.labels.disk==fast"]))
        cluster.update_service(task_template=fast)
        cluster.run(60, until=is_completed(cluster))

        assert {t.node_id for t in cluster.running()} == {nodes[0].id}


def test_another_published_port_replaces_no_task_another_target_port_does() -> None:
    with settled(a_web(1)) as cluster:
        port = pb.PortConfig(target_port=80, published_port=8080)
        cluster.update_service(endpoint_spec=pb.EndpointSpec(ports=[port]))
        cluster.run(30)
        (task,) = cluster.running()
        assert cluster.service().update_status.state == pb.UPDATE_STATE_COMPLETED

        def publish_elsewhere(tx: Any) -> None:
            service = pb.Service()
            service.CopyFrom(cluster.service())
            service.spec.endpoint_spec.ports[0].published_port = 9090
            service.spec_version.index = 1000
            tx.update(service)

        cluster.commit(publish_elsewhere)
        cluster.run(30)

        assert [t.id for t in cluster.running()] == [task.id]
        assert cluster.service().endpoint.ports[0].published_port == 9090


def test_credentials_for_pulling_are_no_reason_to_replace_a_task() -> None:
    with settled(a_web(1)) as cluster:
        before = {t.id for t in cluster.running()}

        cluster.update_service(task_template=pb.TaskSpec(container_spec=pb.ContainerSpec(pull_auth=b"x")))
        cluster.run(30)

        assert {t.id for t in cluster.running()} == before


@pytest.mark.parametrize("order", [pb.UPDATE_ORDER_STOP_FIRST, pb.UPDATE_ORDER_START_FIRST])
def test_leaders_that_change_all_the_time_finish_an_update_all_the_same(
    order: pb.UpdateOrder.ValueType,
) -> None:
    with settled(a_web(order=order)) as cluster:
        cluster.checks.append(at_least_serving(6 if order == pb.UPDATE_ORDER_START_FIRST else 4))

        cluster.update_service(image="image:2")
        for _ in range(200):
            cluster.run(0.1)
            cluster.change_leader()

        assert cluster.images() == ["image:2"] * 6
        assert update_state(cluster) == pb.UPDATE_STATE_COMPLETED


@pytest.mark.parametrize("limit", [0, 1])
def test_a_short_task_history_changes_nothing_for_an_update(limit: int) -> None:
    with settled(a_web()) as cluster:

        def shorten(tx: Any) -> None:
            changed = pb.Cluster()
            changed.CopyFrom(cluster.view.cluster())
            changed.spec.orchestration.task_history_retention_limit = limit
            tx.update(changed)

        cluster.commit(shorten)
        cluster.checks.append(at_least_serving(4))
        cluster.update_service(image="image:2")
        cluster.run(60, until=is_completed(cluster))
        cluster.run(1)

        assert cluster.images() == ["image:2"] * 6
        assert len(cluster.tasks()) == 6 * (1 + limit)


def test_switching_to_stop_first_in_the_middle_of_start_first_ends_well() -> None:
    with settled(a_web(order=pb.UPDATE_ORDER_START_FIRST)) as cluster:
        cluster.update_service(image="slow:2")
        cluster.run(2)

        def switch(tx: Any) -> None:
            service = pb.Service()
            service.CopyFrom(cluster.service())
            service.spec.update_config.order = pb.UPDATE_ORDER_STOP_FIRST
            tx.update(service)

        cluster.commit(switch)
        cluster.run(120, until=is_completed(cluster))

        assert cluster.images() == ["slow:2"] * 6


@pytest.mark.parametrize("config", [{"delay_ns": 2 * SECOND}, {"monitor_ns": 2 * SECOND}])
def test_a_clock_that_is_set_back_does_not_hold_up_an_update(config: Any) -> None:
    with settled(a_web(3, **config)) as cluster:
        cluster.set_clock(cluster.now + timedelta(hours=5))
        cluster.update_service(image="image:2")
        cluster.run(1)

        cluster.set_clock(NOW + timedelta(minutes=1))
        cluster.change_leader()
        cluster.run(30, until=is_completed(cluster))

        assert update_state(cluster) == pb.UPDATE_STATE_COMPLETED
