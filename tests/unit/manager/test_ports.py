"""Published ports and the step from NEW to PENDING."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swarmlet.api import pb
from swarmlet.manager.allocator import ports
from tests.builders import a_node, a_service
from tests.unit.manager.harness import Cluster, now_or_never


def a_published(
    name: str, *published: int, protocol: pb.PortProtocol.ValueType = pb.PORT_PROTOCOL_TCP
) -> pb.Service:
    service = a_service(name)
    for number, port in enumerate(published):
        service.spec.endpoint_spec.ports.add(target_port=80 + number, published_port=port, protocol=protocol)
    return service


def published(cluster: Cluster, name: str) -> list[int]:
    return [p.published_port for p in cluster.service(name).endpoint.ports]


def edit_ports(cluster: Cluster, name: str, change: Callable[[Any], None]) -> None:
    def edit(tx: Any) -> None:
        service = pb.Service()
        service.CopyFrom(cluster.service(name))
        change(service.spec.endpoint_spec.ports)
        service.spec_version.index = cluster.store.applied_index + 1
        tx.update(service)

    cluster.commit(edit)
    cluster.run(1)


def test_open_ports_get_the_lowest_free_numbers() -> None:
    with Cluster(a_node(), a_published("a", 0, 0), a_published("b", 30001)) as cluster:
        cluster.run(1)

        assert published(cluster, "b") == [30001]
        assert published(cluster, "a") == [30000, 30002]


def test_two_services_of_one_moment_never_get_the_same_port() -> None:
    services = [a_published(f"s{i}", 0) for i in range(20)]
    with Cluster(a_node(), *services) as cluster:
        cluster.run(1)

        given = [published(cluster, s.spec.name)[0] for s in services]
        assert sorted(given) == list(range(30000, 30020))


def test_protocols_have_ports_of_their_own() -> None:
    udp = a_published("udp", 8080, 0, protocol=pb.PORT_PROTOCOL_UDP)
    with Cluster(a_node(), a_published("tcp", 8080, 0), udp) as cluster:
        cluster.run(1)

        assert published(cluster, "tcp") == published(cluster, "udp") == [8080, 30000]


def test_a_port_that_was_given_stays_when_others_come_and_go() -> None:
    with Cluster(a_node(), a_published("a", 0), a_published("b", 0)) as cluster:
        cluster.run(1)
        before = published(cluster, "b")

        cluster.remove_service("a")
        edit_ports(cluster, "b", lambda ports: ports.add(target_port=443))

        assert published(cluster, "b")[:1] == before
        assert len(set(published(cluster, "b"))) == 2


def test_a_port_that_is_no_longer_published_is_free_again() -> None:
    with Cluster(a_node(), a_published("a", 0)) as cluster:
        cluster.run(1)

        edit_ports(cluster, "a", lambda ports: ports.__delitem__(slice(None)))
        cluster.add(a_published("b", 0))
        cluster.run(1)

        assert published(cluster, "a") == []
        assert published(cluster, "b") == [30000]


def test_a_taken_port_is_said_on_the_tasks_until_it_is_free() -> None:
    first, second = a_published("first", 8080), a_published("second", 8080)
    with Cluster(a_node(), first) as cluster:
        cluster.run(1)
        cluster.add(second)
        cluster.run(1)

        (task,) = cluster.tasks("second")
        assert task.status.state == pb.TASK_STATE_NEW
        assert task.status.err == (
            f"port '8080' is already in use by service 'first' ({first.id}) as an ingress port"
        )

        cluster.remove_service("first")
        cluster.run(1)
        (task,) = cluster.running("second")
        assert task.status.err == ""
        assert published(cluster, "second") == [8080]


def test_of_two_services_that_want_one_port_at_once_one_waits() -> None:
    with Cluster(a_node(), a_published("a", 8080), a_published("b", 8080)) as cluster:
        cluster.run(1)

        waiting = [t for name in "ab" for t in cluster.tasks(name) if t.status.state == pb.TASK_STATE_NEW]
        assert len(waiting) == 1
        assert "already in use" in waiting[0].status.err


def test_running_out_of_ports_is_said_on_the_tasks(monkeypatch: Any) -> None:
    monkeypatch.setattr(ports, "DYNAMIC_PORTS", range(30000, 30002))
    with Cluster(a_node(), a_published("a", 0, 0), a_published("b", 0)) as cluster:
        cluster.run(1)

        texts = [t.status.err for name in "ab" for t in cluster.tasks(name) if t.status.err]
        assert len(texts) == 1
        assert texts[0].startswith(
            "no published port is left for target port 80: 30000 to 30001 are all in use"
        )


def test_host_mode_ports_are_not_the_clusters() -> None:
    services = []
    for name in ("a", "b"):
        service = a_service(name)
        service.spec.endpoint_spec.ports.add(
            target_port=80, published_port=8080, publish_mode=pb.PUBLISH_MODE_HOST
        )
        services.append(service)
    with Cluster(a_node("x"), a_node("y"), *services) as cluster:
        cluster.run(1)

        (one,), (other,) = cluster.running("a"), cluster.running("b")
        assert one.node_id != other.node_id
        assert published(cluster, "a") == published(cluster, "b") == [8080]


def test_a_task_has_a_copy_of_its_services_endpoint() -> None:
    with Cluster(a_node(), a_published("a", 0)) as cluster:
        cluster.run(1)

        (task,) = cluster.running("a")
        assert task.endpoint == cluster.service("a").endpoint
        assert task.status.state == pb.TASK_STATE_RUNNING


def test_a_task_of_an_older_revision_keeps_its_own_host_ports() -> None:
    service = a_published("a", 0)
    with Cluster(a_node(), service) as cluster:
        cluster.run(1)
        old = pb.EndpointSpec()
        old.ports.add(target_port=22, published_port=2222, publish_mode=pb.PUBLISH_MODE_HOST)
        task = pb.Task(id="old", service_id=service.id, slot=7, endpoint=pb.Endpoint(spec=old))
        task.desired_state = pb.TASK_STATE_READY

        cluster.add(task)
        view = cluster.view
        plan = ports.PortAllocator().plan(view, service.id, cluster.now)
        now_or_never(cluster.store.batch(plan.edits))

        assert [p.published_port for p in cluster.view.tasks.get("old").endpoint.ports] == [2222]
