"""What becomes of tasks when their nodes change."""

from __future__ import annotations

from swarmlet.api import pb
from tests.builders import a_node, a_service
from tests.unit.manager.harness import Cluster


def test_tasks_of_a_drained_node_move_without_a_delay() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_service("web", replicas=4)) as cluster:
        cluster.run(1)

        cluster.set_node(nodes[0], availability=pb.NODE_AVAILABILITY_DRAIN)
        cluster.run(2)

        assert {t.node_id for t in cluster.running()} == {nodes[1].id}
        assert [t.slot for t in cluster.running()] == [1, 2, 3, 4]


def test_the_task_that_moves_is_stopped_before_its_follower_starts() -> None:
    def check(cluster: Cluster) -> None:
        slots = [t.slot for t in cluster.serving()]
        assert len(slots) == len(set(slots))

    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_service("web", replicas=4)) as cluster:
        cluster.run(1)
        cluster.checks.append(check)

        cluster.set_node(nodes[0], availability=pb.NODE_AVAILABILITY_DRAIN)
        cluster.run(2)


def test_tasks_of_a_node_that_is_down_are_replaced_at_once() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_service("web", replicas=4)) as cluster:
        cluster.run(1)

        cluster.unreachable.add(nodes[0].id)
        cluster.set_node(nodes[0], state=pb.NODE_STATE_DOWN)
        cluster.run(0.5)

        assert {t.node_id for t in cluster.running()} == {nodes[1].id}
        assert [t.slot for t in cluster.running()] == [1, 2, 3, 4]


def test_a_node_that_comes_back_stops_what_was_replaced() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_service("web", replicas=4)) as cluster:
        cluster.run(1)
        cluster.unreachable.add(nodes[0].id)
        cluster.set_node(nodes[0], state=pb.NODE_STATE_DOWN)
        cluster.run(5)

        cluster.unreachable.clear()
        cluster.set_node(nodes[0], state=pb.NODE_STATE_READY)
        cluster.run(5)

        assert len(cluster.serving()) == 4
        assert {t.node_id for t in cluster.running()} == {nodes[1].id}


def test_tasks_of_a_paused_node_stay() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_service("web", replicas=4)) as cluster:
        cluster.run(1)
        before = {t.id for t in cluster.running()}

        cluster.set_node(nodes[0], availability=pb.NODE_AVAILABILITY_PAUSE)
        cluster.run(30)
        cluster.update_service(replicas=6)
        cluster.run(1)

        assert before < {t.id for t in cluster.running()}
        assert {t.node_id for t in cluster.running() if t.id not in before} == {nodes[1].id}


def test_tasks_of_a_removed_node_are_orphans_and_replaced_at_once() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_service("web", replicas=4)) as cluster:
        cluster.run(1)

        cluster.remove_node(nodes[0])
        cluster.run(0.5)

        assert [t.slot for t in cluster.running()] == [1, 2, 3, 4]
        assert {t.node_id for t in cluster.running()} == {nodes[1].id}
        left = [t for t in cluster.tasks() if t.node_id == nodes[0].id]
        assert {t.status.state for t in left} == {pb.TASK_STATE_ORPHANED}


def test_a_node_removed_while_nobody_led_is_noticed_by_the_next_leader() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_service("web", replicas=4)) as cluster:
        cluster.run(1)

        cluster.remove_node(nodes[0])
        cluster.change_leader()
        cluster.run(0.5)

        assert {t.node_id for t in cluster.running()} == {nodes[1].id}
        assert len(cluster.running()) == 4


def test_tasks_are_evicted_when_a_label_they_need_is_taken_away() -> None:
    nodes = [a_node("a", labels={"zone": "east"}), a_node("b", labels={"zone": "east"})]
    template = pb.TaskSpec(placement=pb.Placement(constraints=["node.labels.zone == east"]))
    with Cluster(*nodes, a_service("web", replicas=4, task_template=template)) as cluster:
        cluster.run(1)

        cluster.set_node(nodes[0], labels={"zone": "west"})
        cluster.run(2)

        assert {t.node_id for t in cluster.running()} == {nodes[1].id}
        assert len(cluster.running()) == 4


def test_a_follower_stops_waiting_when_the_node_of_its_predecessor_goes_down() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_service("web")) as cluster:
        cluster.run(1)
        (task,) = cluster.running()
        node = cluster.view.nodes.get(task.node_id)
        cluster.unreachable.add(node.id)
        cluster.set_node(node, availability=pb.NODE_AVAILABILITY_DRAIN)
        cluster.run(5)
        assert cluster.wanted()[0].desired_state == pb.TASK_STATE_READY

        cluster.set_node(node, state=pb.NODE_STATE_DOWN)
        cluster.run(0.5)

        assert len(cluster.running()) == 1


def test_a_prepared_follower_whose_node_goes_down_is_prepared_elsewhere() -> None:
    nodes = [a_node("a"), a_node("b")]
    with Cluster(*nodes, a_service("web")) as cluster:
        cluster.run(1)
        cluster.report(cluster.running()[0], pb.TASK_STATE_FAILED)
        cluster.run(1)
        (follower,) = cluster.wanted()
        node = cluster.view.nodes.get(follower.node_id)

        cluster.unreachable.add(node.id)
        cluster.set_node(node, state=pb.NODE_STATE_DOWN)
        cluster.run(1)

        (second,) = cluster.wanted()
        assert second.id != follower.id
        assert second.start_after == follower.start_after
        assert second.desired_state == pb.TASK_STATE_READY
        cluster.run(4)
        assert len(cluster.running()) == 1


def test_tasks_wait_for_a_node_and_say_so() -> None:
    with Cluster(a_service("web", replicas=2)) as cluster:
        cluster.run(1)
        assert {t.status.err for t in cluster.tasks()} == {"no suitable node"}

        cluster.add(a_node("a"))
        cluster.run(1)

        assert len(cluster.running()) == 2
        assert {t.status.err for t in cluster.tasks()} == {""}
