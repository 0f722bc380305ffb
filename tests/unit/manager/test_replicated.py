"""Stories of replicated services: creation, scaling, removal."""

from __future__ import annotations

from collections import Counter

from swarmlet.api import pb
from tests.builders import a_node, a_service
from tests.unit.manager.harness import Cluster


def test_a_new_service_gets_one_running_task_per_replica() -> None:
    with Cluster(a_node("a"), a_node("b"), a_service("web", replicas=4)) as cluster:
        cluster.run(1)

        running = cluster.running()
        assert [t.slot for t in running] == [1, 2, 3, 4]
        assert [t.name for t in running] == ["web.1", "web.2", "web.3", "web.4"]
        assert len(cluster.tasks()) == 4


def test_a_task_carries_what_it_needs_of_its_service() -> None:
    service = a_service("web", labels={"tier": "front"})
    service.spec.endpoint_spec.ports.add(target_port=80)
    with Cluster(a_node(), service) as cluster:
        cluster.run(1)

        (task,) = cluster.running()
        assert task.service_name == "web"
        assert dict(task.service_labels) == {"tier": "front"}
        assert task.spec == service.spec.task_template
        assert task.spec_version == service.spec_version
        assert task.endpoint.ports[0].published_port == 30000


def test_replicas_are_spread_over_the_nodes() -> None:
    nodes = [a_node(f"n{i}") for i in range(5)]
    with Cluster(*nodes, a_service("web", replicas=100)) as cluster:
        cluster.run(1)

        assert set(Counter(t.node_id for t in cluster.running()).values()) == {20}


def test_scaling_up_fills_the_lowest_free_slots() -> None:
    with Cluster(a_node(), a_service("web", replicas=2)) as cluster:
        cluster.run(1)

        cluster.update_service(replicas=5)
        cluster.run(1)

        assert [t.slot for t in cluster.running()] == [1, 2, 3, 4, 5]
        assert cluster.service().update_status.state == pb.UPDATE_STATE_NONE


def test_scaling_down_gives_up_the_highest_slots_and_forgets_them() -> None:
    with Cluster(a_node(), a_service("web", replicas=5)) as cluster:
        cluster.run(1)

        cluster.update_service(replicas=2)
        cluster.run(2)

        assert [t.slot for t in cluster.tasks()] == [1, 2]
        assert len(cluster.running()) == 2


def test_scaling_down_prefers_slots_that_do_not_run() -> None:
    web = a_service("web", replicas=3)
    with Cluster(a_node(), web) as cluster:
        cluster.run(1)
        cluster.report(cluster.running()[0], pb.TASK_STATE_FAILED)
        cluster.run(1)

        cluster.update_service(replicas=2)
        cluster.run(10)

        assert [t.slot for t in cluster.running()] == [2, 3]


def test_scaling_down_leaves_the_nodes_evenly_used() -> None:
    nodes = [a_node(f"n{i}") for i in range(3)]
    with Cluster(*nodes, a_service("web", replicas=9)) as cluster:
        cluster.run(1)

        cluster.update_service(replicas=3)
        cluster.run(2)

        assert set(Counter(t.node_id for t in cluster.running()).values()) == {1}


def test_a_slot_given_up_and_wanted_again_waits_for_its_last_task_to_stop() -> None:
    with Cluster(a_node(), a_service("web", replicas=2)) as cluster:
        cluster.run(1)

        cluster.update_service(replicas=1)
        cluster.settle()
        cluster.update_service(replicas=2)
        cluster.settle()

        (new,) = [t for t in cluster.wanted() if t.slot == 2]
        assert new.desired_state == pb.TASK_STATE_READY
        cluster.run(3)
        assert [t.slot for t in cluster.running()] == [1, 2]
        assert len(cluster.tasks()) == 2


def test_scaling_to_nothing_and_back_works() -> None:
    with Cluster(a_node(), a_service("web", replicas=3)) as cluster:
        cluster.run(1)

        cluster.update_service(replicas=0)
        cluster.run(2)
        assert cluster.tasks() == []

        cluster.update_service(replicas=3)
        cluster.run(2)
        assert len(cluster.running()) == 3


def test_tasks_of_a_removed_service_are_stopped_and_forgotten() -> None:
    with Cluster(a_node(), a_service("web", replicas=3)) as cluster:
        cluster.run(1)

        cluster.remove_service()
        cluster.settle()
        assert {t.desired_state for t in cluster.view.tasks} == {pb.TASK_STATE_REMOVE}

        cluster.run(2)
        assert len(cluster.view.tasks) == 0


def test_a_service_removed_while_nobody_led_is_cleaned_up_by_the_next_leader() -> None:
    with Cluster(a_node(), a_service("web", replicas=3)) as cluster:
        cluster.run(1)

        cluster.remove_service()
        cluster.change_leader()
        cluster.run(2)

        assert len(cluster.view.tasks) == 0


def test_a_service_removed_before_its_tasks_were_placed_leaves_nothing() -> None:
    with Cluster(a_service("web", replicas=3)) as cluster:
        cluster.run(1)
        assert len(cluster.tasks()) == 3

        cluster.remove_service()
        cluster.run(1)

        assert len(cluster.view.tasks) == 0


def test_a_new_leader_has_nothing_to_do_in_a_settled_cluster() -> None:
    with Cluster(a_node(), a_service("web", replicas=3)) as cluster:
        cluster.run(20)
        commits = cluster.commits

        cluster.change_leader()
        cluster.run(20)

        assert cluster.commits == commits


def test_work_that_was_left_halfway_is_finished_by_the_next_leader() -> None:
    with Cluster(a_node(), a_service("web", replicas=1)) as cluster:
        cluster.run(0.1)
        cluster.update_service(replicas=50)
        for _ in range(3):
            cluster._deliver()
            for controller in cluster._controllers[:2]:
                cluster._plan(controller)
        cluster.change_leader()

        cluster.run(2)

        assert [t.slot for t in cluster.running()] == list(range(1, 51))
