"""Stories of global services."""

from __future__ import annotations

from swarmlet.api import pb
from tests.builders import a_global_service, a_node
from tests.unit.manager.harness import Cluster


def on_nodes(cluster: Cluster) -> set[str]:
    running = cluster.running("agent")
    assert len({t.node_id for t in running}) == len(running)
    return {t.node_id for t in running}


def test_every_node_runs_one_task() -> None:
    nodes = [a_node(f"n{i}") for i in range(4)]
    with Cluster(*nodes, a_global_service()) as cluster:
        cluster.run(1)

        assert on_nodes(cluster) == {n.id for n in nodes}
        assert {t.slot for t in cluster.tasks("agent")} == {0}
        assert {t.name for t in cluster.tasks("agent")} == {f"agent.{n.id}" for n in nodes}


def test_a_node_that_joins_gets_a_task() -> None:
    with Cluster(a_node("a"), a_global_service()) as cluster:
        cluster.run(1)
        node = a_node("b")

        cluster.add(node)
        cluster.run(1)

        assert node.id in on_nodes(cluster)


def test_only_nodes_that_meet_the_constraints_run_a_task() -> None:
    nodes = [a_node("a", labels={"gpu": "yes"}), a_node("b")]
    template = pb.TaskSpec(placement=pb.Placement(constraints=["node.labels.gpu==yes"]))
    with Cluster(*nodes, a_global_service(task_template=template)) as cluster:
        cluster.run(1)
        assert on_nodes(cluster) == {nodes[0].id}

        cluster.set_node(nodes[1], labels={"gpu": "yes"})
        cluster.set_node(nodes[0], labels={})
        cluster.run(2)

        assert on_nodes(cluster) == {nodes[1].id}


def test_a_drained_or_lost_node_runs_none_until_it_is_back() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_global_service()) as cluster:
        cluster.run(1)

        cluster.set_node(nodes[0], availability=pb.NODE_AVAILABILITY_DRAIN)
        cluster.unreachable.add(nodes[1].id)
        cluster.set_node(nodes[1], state=pb.NODE_STATE_DOWN)
        cluster.run(5)
        assert on_nodes(cluster) == set()
        assert cluster.wanted("agent") == []

        cluster.set_node(nodes[0], availability=pb.NODE_AVAILABILITY_ACTIVE)
        cluster.unreachable.clear()
        cluster.set_node(nodes[1], state=pb.NODE_STATE_READY)
        cluster.run(5)
        assert on_nodes(cluster) == {n.id for n in nodes}


def test_on_a_paused_node_tasks_stay_but_are_not_started_again() -> None:
    node = a_node("a")
    with Cluster(node, a_global_service()) as cluster:
        cluster.run(1)
        (task,) = cluster.running("agent")
        cluster.set_node(node, availability=pb.NODE_AVAILABILITY_PAUSE)
        cluster.run(20)
        assert [t.id for t in cluster.running("agent")] == [task.id]

        cluster.report(task, pb.TASK_STATE_FAILED)
        cluster.run(20)
        assert cluster.wanted("agent") == []

        cluster.set_node(node, availability=pb.NODE_AVAILABILITY_ACTIVE)
        cluster.run(20)
        assert len(cluster.running("agent")) == 1


def test_tasks_of_a_removed_node_are_over() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_global_service()) as cluster:
        cluster.run(1)

        cluster.remove_node(nodes[0])
        cluster.run(5)

        assert on_nodes(cluster) == {nodes[1].id}
        assert len(cluster.wanted("agent")) == 1


def test_a_failed_task_is_followed_on_its_node() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_global_service()) as cluster:
        cluster.run(1)

        cluster.report(cluster.running("agent")[0], pb.TASK_STATE_FAILED)
        cluster.run(7)

        assert on_nodes(cluster) == {n.id for n in nodes}


def test_an_update_goes_from_node_to_node() -> None:
    nodes = [a_node(f"n{i}") for i in range(4)]
    with Cluster(*nodes, a_global_service()) as cluster:
        cluster.run(10)

        def check(c: Cluster) -> None:
            assert len([t for t in c.serving("agent") if t.desired_state == pb.TASK_STATE_RUNNING]) >= 3

        cluster.checks.append(check)
        cluster.update_service("agent", image="image:2")
        cluster.run(
            60, until=lambda: cluster.service("agent").update_status.state == pb.UPDATE_STATE_COMPLETED
        )

        assert cluster.images("agent") == ["image:2"] * 4


def test_a_node_that_cannot_take_the_task_says_so() -> None:
    small = a_node("a", memory=1)
    template = pb.TaskSpec()
    template.resources.reservations.memory_bytes = 100
    with Cluster(small, a_global_service(task_template=template)) as cluster:
        cluster.run(1)

        (task,) = cluster.tasks("agent")
        assert task.status.state == pb.TASK_STATE_PENDING
        assert task.status.err == "no suitable node (insufficient resources on 1 node)"


def test_removing_the_service_removes_its_tasks() -> None:
    with Cluster(a_node("a"), a_global_service()) as cluster:
        cluster.run(1)

        cluster.remove_service("agent")
        cluster.run(2)

        assert len(cluster.view.tasks) == 0


def test_a_task_whose_node_was_paused_during_an_update_is_updated_afterwards() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_global_service()) as cluster:
        cluster.run(1)
        cluster.set_node(nodes[0], availability=pb.NODE_AVAILABILITY_PAUSE)
        cluster.update_service("agent", image="image:2")
        cluster.run(30)
        assert sorted(cluster.images("agent")) == ["image:1", "image:2"]

        cluster.set_node(nodes[0], availability=pb.NODE_AVAILABILITY_ACTIVE)
        cluster.run(30)

        assert cluster.images("agent") == ["image:2", "image:2"]
