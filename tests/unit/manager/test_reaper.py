"""How much of what is over is kept."""

from __future__ import annotations

import pytest

from swarmlet.api import pb
from swarmlet.manager.orchestrator.reaper import Reaper
from swarmlet.store.store import Transaction
from tests.builders import NOW, a_node, a_service, a_task, make_store
from tests.unit.manager.harness import Cluster

SECOND = 1_000_000_000


def set_history(cluster: Cluster, limit: int) -> None:
    def change(tx: object) -> None:
        changed = pb.Cluster()
        changed.CopyFrom(cluster.view.cluster())
        changed.spec.orchestration.task_history_retention_limit = limit
        tx.update(changed)  # type: ignore[attr-defined]

    cluster.commit(change)


def a_crashing_service(**policy: int) -> pb.Service:
    service = a_service("web", task_template=pb.TaskSpec(restart_policy=pb.RestartPolicy(**policy)))  # type: ignore[arg-type]
    service.spec.task_template.container_spec.image = "flaky"
    return service


def test_five_ended_tasks_of_a_slot_are_kept_and_they_are_the_newest() -> None:
    with Cluster(a_node(), a_crashing_service()) as cluster:
        cluster.run(600)

        tasks = cluster.tasks()
        assert len(tasks) == 6
        made = [t.created_at.ToNanoseconds() for t in tasks]
        assert max(made) - min(made) < 200 * SECOND


@pytest.mark.parametrize("limit", [1, 3])
def test_the_clusters_task_history_limit_is_kept_to(limit: int) -> None:
    with Cluster(a_node(), a_crashing_service()) as cluster:
        cluster.run(600)

        set_history(cluster, limit)
        cluster.run(100)

        assert len(cluster.tasks()) == limit + 1


def test_a_negative_limit_keeps_everything() -> None:
    with Cluster(a_node(), a_crashing_service()) as cluster:
        set_history(cluster, -1)
        cluster.run(600)

        assert len(cluster.tasks()) > 20


def test_what_restart_attempts_are_counted_from_is_kept() -> None:
    with Cluster(a_node(), a_crashing_service(max_attempts=9, delay_ns=0)) as cluster:
        set_history(cluster, 1)
        cluster.run(600)

        assert len(cluster.tasks()) == 10
        assert cluster.wanted() == []


def test_a_task_to_be_removed_stays_until_it_has_stopped() -> None:
    service = a_service("web", replicas=0)
    node = a_node()
    task = a_task(service, node_id=node.id, desired=pb.TASK_STATE_REMOVE)
    with Cluster(node, service, task) as cluster:
        cluster.settle()
        assert len(cluster.tasks()) == 1

        cluster.run(1)

        assert cluster.tasks() == []


def test_orphans_of_a_removed_service_are_forgotten() -> None:
    service = a_service("gone")
    tasks = [
        a_task(service, 1, pb.TASK_STATE_ORPHANED),
        a_task(service, 2, pb.TASK_STATE_FAILED, pb.TASK_STATE_SHUTDOWN),
        a_task(service, 3, pb.TASK_STATE_NEW),
    ]
    with Cluster(*tasks) as cluster:
        cluster.run(1)

        assert len(cluster.view.tasks) == 0


def test_a_task_of_a_removed_service_on_a_removed_node_is_forgotten() -> None:
    task = a_task(a_service("gone"), node_id="gone")
    with Cluster(task) as cluster:
        cluster.run(1)

        assert len(cluster.view.tasks) == 0


def test_history_of_an_ended_update_shrinks_to_what_is_kept() -> None:
    service = a_service("web", replicas=3)
    with Cluster(a_node(), service) as cluster:
        set_history(cluster, 0)
        cluster.run(10)

        cluster.update_service(image="image:2")
        cluster.run(60)

        assert cluster.service().update_status.state == pb.UPDATE_STATE_COMPLETED
        assert len(cluster.tasks()) == 3
        assert cluster.now > NOW


async def test_a_task_that_is_given_to_a_node_while_its_service_is_removed_is_removed_too() -> None:
    node, service = a_node(), a_service()
    task = a_task(service, state=pb.TASK_STATE_PENDING)
    store = make_store(node, task)
    plan = Reaper().plan(store.view, ("service", service.id), NOW)

    def assign(tx: Transaction) -> None:
        assigned = pb.Task()
        assigned.CopyFrom(tx.get(pb.Task, task.id) or task)
        assigned.node_id = node.id
        assigned.status.state = pb.TASK_STATE_ASSIGNED
        tx.update(assigned)

    await store.update(assign)
    await store.batch(plan.edits)

    (left,) = store.view.tasks
    assert left.desired_state == pb.TASK_STATE_REMOVE
