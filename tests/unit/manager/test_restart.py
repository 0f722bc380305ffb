"""What follows a task that ended."""

from __future__ import annotations

from datetime import timedelta

import pytest

from swarmlet.api import pb
from tests.builders import NOW, a_node, a_service
from tests.unit.manager.harness import Cluster

SECOND = 1_000_000_000


def a_policy(**fields: object) -> pb.TaskSpec:
    return pb.TaskSpec(restart_policy=pb.RestartPolicy(**fields))  # type: ignore[arg-type]


def test_a_failed_task_is_followed_in_its_slot_after_the_delay() -> None:
    with Cluster(a_node(), a_service("web", replicas=2)) as cluster:
        cluster.run(1)
        victim = cluster.running()[0]

        cluster.report(victim, pb.TASK_STATE_FAILED)
        cluster.run(4.5)
        assert len(cluster.running()) == 1
        cluster.run(1)

        assert [t.slot for t in cluster.running()] == [1, 2]
        assert victim.id not in [t.id for t in cluster.running()]


def test_the_follower_is_prepared_while_it_waits() -> None:
    with Cluster(a_node(), a_service("web")) as cluster:
        cluster.run(1)

        cluster.report(cluster.running()[0], pb.TASK_STATE_FAILED)
        cluster.run(2)

        (follower,) = cluster.wanted()
        assert follower.desired_state == pb.TASK_STATE_READY
        assert follower.status.state == pb.TASK_STATE_READY


def test_without_a_delay_the_follower_runs_at_once() -> None:
    template = a_policy(delay_ns=0)
    with Cluster(a_node(), a_service("web", task_template=template)) as cluster:
        cluster.run(1)

        cluster.report(cluster.running()[0], pb.TASK_STATE_FAILED)
        cluster.settle()

        (follower,) = cluster.wanted()
        assert follower.desired_state == pb.TASK_STATE_RUNNING


@pytest.mark.parametrize(
    ("condition", "end", "is_followed"),
    [
        (pb.RESTART_CONDITION_ANY, pb.TASK_STATE_COMPLETE, True),
        (pb.RESTART_CONDITION_ANY, pb.TASK_STATE_FAILED, True),
        (pb.RESTART_CONDITION_ON_FAILURE, pb.TASK_STATE_COMPLETE, False),
        (pb.RESTART_CONDITION_ON_FAILURE, pb.TASK_STATE_FAILED, True),
        (pb.RESTART_CONDITION_ON_FAILURE, pb.TASK_STATE_REJECTED, True),
        (pb.RESTART_CONDITION_NONE, pb.TASK_STATE_COMPLETE, False),
        (pb.RESTART_CONDITION_NONE, pb.TASK_STATE_FAILED, False),
    ],
)
def test_the_condition_decides_whether_a_task_is_followed(
    condition: pb.RestartCondition.ValueType, end: pb.TaskState.ValueType, is_followed: bool
) -> None:
    with Cluster(a_node(), a_service("web", task_template=a_policy(condition=condition))) as cluster:
        cluster.run(1)

        cluster.report(cluster.running()[0], end)
        cluster.run(10)

        assert len(cluster.running()) == (1 if is_followed else 0)
        assert {t.slot for t in cluster.tasks()} == {1}


def test_a_slot_that_was_given_up_stays_so_under_a_new_leader() -> None:
    template = a_policy(condition=pb.RESTART_CONDITION_NONE)
    with Cluster(a_node(), a_service("web", replicas=2, task_template=template)) as cluster:
        cluster.run(1)
        cluster.report(cluster.running()[0], pb.TASK_STATE_FAILED)
        cluster.run(1)

        cluster.change_leader()
        cluster.run(60)

        assert len(cluster.tasks()) == 2
        assert len(cluster.running()) == 1


def test_after_max_attempts_no_task_follows() -> None:
    template = a_policy(max_attempts=3, delay_ns=SECOND)
    service = a_service("web", task_template=template)
    service.spec.task_template.container_spec.image = "crash"
    with Cluster(a_node(), service) as cluster:
        cluster.run(60)

        assert len(cluster.tasks()) == 4
        assert cluster.wanted() == []


def test_a_new_leader_counts_attempts_on() -> None:
    template = a_policy(max_attempts=3, delay_ns=SECOND)
    service = a_service("web", task_template=template)
    service.spec.task_template.container_spec.image = "crash"
    with Cluster(a_node(), service) as cluster:
        for _ in range(20):
            cluster.change_leader()
            cluster.run(1)

        assert len(cluster.tasks()) == 4


def test_attempts_outside_the_window_do_not_count() -> None:
    template = a_policy(max_attempts=2, delay_ns=SECOND, window_ns=30 * SECOND)
    service = a_service("web", task_template=template)
    service.spec.task_template.container_spec.image = "flaky"
    with Cluster(a_node(), service) as cluster:
        cluster.run(200)

        assert len(cluster.running()) == 1


def test_attempts_within_the_window_count() -> None:
    template = a_policy(max_attempts=2, delay_ns=SECOND, window_ns=300 * SECOND)
    service = a_service("web", task_template=template)
    service.spec.task_template.container_spec.image = "flaky"
    with Cluster(a_node(), service) as cluster:
        cluster.run(200)

        assert cluster.wanted() == []
        assert len(cluster.tasks()) == 3


def test_a_new_revision_has_attempts_of_its_own() -> None:
    template = a_policy(max_attempts=1, delay_ns=0)
    service = a_service("web", task_template=template)
    service.spec.task_template.container_spec.image = "crash"
    with Cluster(a_node(), service) as cluster:
        cluster.run(10)
        assert cluster.wanted() == []

        cluster.update_service(image="image:2")
        cluster.run(10)

        assert cluster.images() == ["image:2"]


def test_a_task_that_fails_while_it_is_prepared_does_not_spin() -> None:
    service = a_service("web")
    service.spec.task_template.container_spec.image = "missing"
    with Cluster(a_node(), service) as cluster:
        made: set[str] = set()
        cluster.checks.append(lambda c: made.update(t.id for t in c.view.tasks))

        cluster.run(60)

        # One every five seconds of delay.
        assert 10 <= len(made) <= 14


def test_a_follower_waits_out_its_delay_under_a_new_leader() -> None:
    with Cluster(a_node(), a_service("web")) as cluster:
        cluster.run(1)
        cluster.report(cluster.running()[0], pb.TASK_STATE_FAILED)
        cluster.run(3)

        cluster.change_leader()
        cluster.run(1)
        assert cluster.running() == []
        cluster.run(1.5)

        assert len(cluster.running()) == 1


def test_a_clock_that_was_set_back_does_not_hold_up_a_start_for_long() -> None:
    with Cluster(a_node(), a_service("web")) as cluster:
        cluster.set_clock(NOW + timedelta(hours=1))
        cluster.run(1)
        cluster.report(cluster.running()[0], pb.TASK_STATE_FAILED)
        cluster.settle()

        cluster.set_clock(NOW)
        cluster.change_leader()
        cluster.run(5)

        assert len(cluster.running()) == 1


def test_losing_its_node_is_no_attempt_of_the_task() -> None:
    node_a, node_b = a_node("a"), a_node("b")
    template = a_policy(max_attempts=1, delay_ns=0)
    with Cluster(node_a, node_b, a_service("web", task_template=template)) as cluster:
        for _ in range(4):
            cluster.run(5)
            (task,) = cluster.running()
            node = cluster.view.nodes.get(task.node_id)
            cluster.unreachable.add(node.id)
            cluster.set_node(node, state=pb.NODE_STATE_DOWN)
            cluster.run(5)
            cluster.unreachable.clear()
            cluster.set_node(node, state=pb.NODE_STATE_READY)

        cluster.run(5)
        assert len(cluster.running()) == 1
