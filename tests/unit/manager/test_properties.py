"""What holds for any services, nodes, faults and orders of events.

The harness checks after every commit that no slot has more tasks that are to run than
its update order allows, and that constraints, resources and host ports are respected.
Here are the claims about whole histories.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmlet.api import pb
from tests.builders import GIB, a_node, a_service
from tests.unit.manager.harness import Cluster

SECOND = 1_000_000_000
IMAGES = ["image:1", "image:2", "image:3", "crash", "missing", "short", "flaky", "slow"]
ENDED = (pb.UPDATE_STATE_NONE, pb.UPDATE_STATE_COMPLETED, pb.UPDATE_STATE_ROLLBACK_COMPLETED)

property_test = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

update_configs = st.builds(
    pb.UpdateConfig,
    parallelism=st.integers(0, 3),
    delay_ns=st.sampled_from([0, SECOND, 7 * SECOND]),
    monitor_ns=st.sampled_from([0, SECOND, 5 * SECOND]),
    order=st.sampled_from([pb.UPDATE_ORDER_STOP_FIRST, pb.UPDATE_ORDER_START_FIRST]),
    failure_action=st.sampled_from(list(pb.FailureAction.values())),
    max_failure_ratio=st.sampled_from([0.0, 0.3]),
)
restart_policies = st.builds(
    pb.RestartPolicy,
    condition=st.sampled_from([pb.RESTART_CONDITION_ANY, pb.RESTART_CONDITION_ON_FAILURE]),
    delay_ns=st.sampled_from([0, SECOND, 5 * SECOND]),
)
events = st.one_of(
    st.tuples(st.just("update"), st.sampled_from(IMAGES)),
    st.tuples(st.just("scale"), st.integers(0, 6)),
    st.tuples(st.just("kill"), st.integers(0, 20)),
    st.tuples(st.just("down"), st.integers(0, 3)),
    st.tuples(st.just("up"), st.integers(0, 3)),
    st.tuples(st.just("drain"), st.integers(0, 3)),
    st.tuples(st.just("pause"), st.integers(0, 3)),
    st.tuples(st.just("activate"), st.integers(0, 3)),
    st.tuples(st.just("relabel"), st.integers(0, 3)),
    st.tuples(st.just("leader"), st.just(0)),
    st.tuples(st.just("wait"), st.sampled_from([0.05, 0.3, 1.0, 6.0, 30.0])),
)


def a_random_service(
    replicas: int, config: pb.UpdateConfig, policy: pb.RestartPolicy, *, constrained: bool
) -> pb.Service:
    service = a_service("web", replicas, update_config=config, rollback_config=config)
    template = service.spec.task_template
    template.restart_policy.CopyFrom(policy)
    template.resources.reservations.memory_bytes = GIB
    if constrained:
        template.placement.constraints.append("node.labels.zone == east")
    return service


class World:
    """A cluster to which events happen."""

    def __init__(self, cluster: Cluster, nodes: list[pb.Node]) -> None:
        self.cluster = cluster
        self.nodes = nodes

    def happen(self, what: str, argument: Any) -> None:
        cluster = self.cluster
        node = self.nodes[argument % len(self.nodes)] if isinstance(argument, int) else self.nodes[0]
        match what:
            case "update":
                cluster.update_service(image=argument)
            case "scale":
                cluster.update_service(replicas=argument)
            case "kill":
                if victims := cluster.serving():
                    cluster.report(victims[argument % len(victims)], pb.TASK_STATE_FAILED)
            case "down":
                cluster.unreachable.add(node.id)
                cluster.set_node(node, state=pb.NODE_STATE_DOWN)
            case "up":
                cluster.unreachable.discard(node.id)
                cluster.set_node(node, state=pb.NODE_STATE_READY)
            case "drain":
                cluster.set_node(node, availability=pb.NODE_AVAILABILITY_DRAIN)
            case "pause":
                cluster.set_node(node, availability=pb.NODE_AVAILABILITY_PAUSE)
            case "activate":
                cluster.set_node(node, availability=pb.NODE_AVAILABILITY_ACTIVE)
            case "relabel":
                zone = cluster.view.nodes.get(node.id).spec.labels["zone"]
                cluster.set_node(node, labels={"zone": "west" if zone == "east" else "east"})
            case "leader":
                cluster.change_leader()
            case "wait":
                cluster.run(argument)

    def heal(self) -> None:
        for node in self.nodes:
            self.cluster.unreachable.discard(node.id)
            self.cluster.set_node(
                node,
                state=pb.NODE_STATE_READY,
                availability=pb.NODE_AVAILABILITY_ACTIVE,
                labels={"zone": "east"},
            )


class ParallelismWatch:
    """Counts slots that an update took down, until something ran in them again."""

    def __init__(self, parallelism: int) -> None:
        self._parallelism = parallelism
        self._before: dict[str, pb.Task] = {}
        self._down: dict[int, set[str]] = {}

    def __call__(self, cluster: Cluster) -> None:
        tasks = {t.id: t for t in cluster.tasks()}
        for task in tasks.values():
            before = self._before.get(task.id)
            if before is not None and self._was_taken_down(cluster, before, task):
                self._down[task.slot] = set(tasks) & set(self._before)
        for slot, known in list(self._down.items()):
            later = [t for t in tasks.values() if t.slot == slot and t.id not in known]
            is_removed = all(
                t.desired_state == pb.TASK_STATE_REMOVE for t in tasks.values() if t.slot == slot
            )
            if is_removed or any(t.status.state >= pb.TASK_STATE_RUNNING for t in later):
                del self._down[slot]
        self._before = tasks
        if self._parallelism:
            assert len(self._down) <= self._parallelism, f"slots {list(self._down)} are down at once"

    def _was_taken_down(self, cluster: Cluster, before: pb.Task, task: pb.Task) -> bool:
        node = cluster.view.nodes.get(task.node_id)
        return (
            before.desired_state == pb.TASK_STATE_RUNNING
            and task.desired_state == pb.TASK_STATE_SHUTDOWN
            and before.status.state == task.status.state == pb.TASK_STATE_RUNNING
            and node is not None
            and node.status.state == pb.NODE_STATE_READY
            and node.spec.availability != pb.NODE_AVAILABILITY_DRAIN
            and not (task.spec.placement.constraints and node.spec.labels["zone"] != "east")
        )


@property_test
@given(
    replicas=st.integers(0, 6),
    config=update_configs,
    policy=restart_policies,
    constrained=st.booleans(),
    happenings=st.lists(events, max_size=14),
    seed=st.integers(0, 1000),
)
def test_whatever_happens_slots_come_to_be_as_many_as_replicas_and_updates_end(
    replicas: int,
    config: pb.UpdateConfig,
    policy: pb.RestartPolicy,
    constrained: bool,
    happenings: list[tuple[str, Any]],
    seed: int,
) -> None:
    nodes = [a_node(f"n{i}", memory=(3 + i) * GIB, labels={"zone": "east"}) for i in range(4)]
    service = a_random_service(replicas, config, policy, constrained=constrained)
    with Cluster(*nodes, service, seed=seed) as cluster:
        world = World(cluster, nodes)
        for what, argument in happenings:
            world.happen(what, argument)

        world.heal()
        cluster.update_service(image="image:9")
        cluster.run(300)

        wanted = cluster.service().spec.mode.replicated.replicas
        assert len({t.slot for t in cluster.running()}) == len(cluster.running()) == wanted
        assert set(cluster.images()) <= {"image:9"}
        assert cluster.service().update_status.state in ENDED
        assert len(cluster.wanted()) == wanted
        commits = cluster.commits
        cluster.run(600)
        assert cluster.commits == commits, "it does not come to rest"


@property_test
@given(
    replicas=st.integers(1, 6),
    parallelism=st.integers(0, 3),
    delay_ns=st.sampled_from([0, 2 * SECOND]),
    happenings=st.lists(events, max_size=12),
    seed=st.integers(0, 1000),
)
def test_an_update_never_takes_down_more_slots_at_once_than_its_parallelism(
    replicas: int,
    parallelism: int,
    delay_ns: int,
    happenings: list[tuple[str, Any]],
    seed: int,
) -> None:
    config = pb.UpdateConfig(
        parallelism=parallelism, delay_ns=delay_ns, failure_action=pb.FAILURE_ACTION_CONTINUE
    )
    nodes = [a_node(f"n{i}", labels={"zone": "east"}) for i in range(4)]
    service = a_random_service(replicas, config, pb.RestartPolicy(), constrained=True)
    with Cluster(*nodes, service, seed=seed) as cluster:
        cluster.run(10)
        world = World(cluster, nodes)
        cluster.checks.append(ParallelismWatch(parallelism))

        cluster.update_service(image="image:2")
        for what, argument in happenings:
            world.happen(what, argument)
            cluster.run(0.2)
        cluster.run(60)


@property_test
@given(
    replicas=st.integers(1, 8),
    parallelism=st.integers(1, 4),
    order=st.sampled_from([pb.UPDATE_ORDER_STOP_FIRST, pb.UPDATE_ORDER_START_FIRST]),
    history=st.integers(0, 3),
    steps=st.lists(st.sampled_from([0.01, 0.1, 0.35, 1.0, 6.0]), max_size=30),
    seed=st.integers(0, 1000),
)
def test_a_good_update_keeps_serving_however_often_leaders_change(
    replicas: int,
    parallelism: int,
    order: pb.UpdateOrder.ValueType,
    history: int,
    steps: list[float],
    seed: int,
) -> None:
    config = pb.UpdateConfig(parallelism=parallelism, order=order)
    service = a_random_service(replicas, config, pb.RestartPolicy(), constrained=False)
    with Cluster(*(a_node(f"n{i}", memory=16 * GIB) for i in range(3)), service, seed=seed) as cluster:

        def limit_history(tx: Any) -> None:
            changed = pb.Cluster()
            changed.CopyFrom(cluster.view.cluster())
            changed.spec.orchestration.task_history_retention_limit = history
            tx.update(changed)

        def check(c: Cluster) -> None:
            serving = [t for t in c.serving() if t.desired_state == pb.TASK_STATE_RUNNING]
            assert len(serving) >= replicas - (parallelism if order == pb.UPDATE_ORDER_STOP_FIRST else 0)

        cluster.commit(limit_history)
        cluster.run(10)
        cluster.checks.append(check)

        cluster.update_service(image="image:2")
        for seconds in steps:
            cluster.run(seconds)
            cluster.change_leader()
        cluster.run(120)

        assert cluster.images() == ["image:2"] * replicas
        assert cluster.service().update_status.state == pb.UPDATE_STATE_COMPLETED


@property_test
@given(
    ports=st.lists(st.lists(st.sampled_from([0, 0, 8080, 30000, 30001]), max_size=3), min_size=1, max_size=6),
    removals=st.lists(st.integers(0, 5), max_size=4),
    seed=st.integers(0, 1000),
)
def test_no_ingress_port_ever_belongs_to_two_services(
    ports: list[list[int]], removals: list[int], seed: int
) -> None:
    def check(cluster: Cluster) -> None:
        given_out = [
            p.published_port
            for s in cluster.view.services
            for p in s.endpoint.ports
            if p.publish_mode == pb.PUBLISH_MODE_INGRESS
        ]
        assert len(given_out) == len(set(given_out))

    with Cluster(a_node(), seed=seed) as cluster:
        cluster.checks.append(check)
        for number, asked in enumerate(ports):
            service = a_service(f"s{number}")
            for target, port in enumerate(dict.fromkeys(p or -i for i, p in enumerate(asked))):
                service.spec.endpoint_spec.ports.add(target_port=80 + target, published_port=max(port, 0))
            cluster.add(service)
        cluster.run(1)
        for number in removals:
            if cluster.view.services.by_name(f"s{number}") is not None:
                cluster.remove_service(f"s{number}")
                cluster.run(1)

        for service in cluster.view.services:
            states = {t.status.state for t in cluster.tasks(service.spec.name)}
            errors = {t.status.err for t in cluster.tasks(service.spec.name)}
            assert states == {pb.TASK_STATE_RUNNING} or all("already in use" in e for e in errors)
