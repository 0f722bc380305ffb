"""Looking objects up."""

from __future__ import annotations

from swarmlet.api import pb
from swarmlet.store.store import Transaction, kind_of
from swarmlet.store.tables import slot_key
from tests.builders import a_config, a_network, a_node, a_secret, a_service, a_task, make_store


def test_services_are_found_by_what_they_use() -> None:
    network, other, secret, config = a_network("n"), a_network("o"), a_secret(), a_config()
    service = a_service("web", networks=[pb.NetworkAttachmentConfig(target=other.id)])
    template = service.spec.task_template
    for target in (network.id, network.id, other.id):
        template.networks.add(target=target)
    template.container_spec.secrets.add(secret_id=secret.id)
    template.container_spec.configs.add(config_id=config.id)

    view = make_store(service, a_service("plain")).view

    for index, key in (
        ("network", network.id),
        ("network", other.id),
        ("secret", secret.id),
        ("config", config.id),
    ):
        assert [found.id for found in view.services.find(index, key)] == [service.id]
    assert view.services.find("network", "unknown") == []


async def test_tasks_stay_in_their_order_when_something_else_changes() -> None:
    service = a_service(replicas=3)
    tasks = [a_task(service, slot, pb.TASK_STATE_STARTING) for slot in (1, 2, 3)]
    store = make_store(service, *tasks)

    def first_runs(tx: Transaction) -> None:
        copy = pb.Task()
        current = tx.get(pb.Task, tasks[0].id)
        assert current is not None
        copy.CopyFrom(current)
        copy.status.state = pb.TASK_STATE_RUNNING
        tx.update(copy)

    await store.update(first_runs)

    ids = [task.id for task in tasks]
    assert [task.id for task in store.view.tasks.find("service", service.id)] == ids
    assert [task.id for task in store.view.tasks] == ids
    assert [task.id for task in store.view.tasks.find("state", pb.TASK_STATE_STARTING)] == ids[1:]


def test_tasks_of_one_slot_share_its_key() -> None:
    service = a_service()
    old, new, second = a_task(service, 1, node_id="n1"), a_task(service, 1, node_id="n2"), a_task(service, 2)
    on_one, on_two = a_task(service, 0, node_id="n1"), a_task(service, 0, node_id="n2")

    view = make_store(service, old, new, second, on_one, on_two).view

    assert slot_key(old) == slot_key(new) != slot_key(second)
    assert slot_key(on_one) != slot_key(on_two)
    assert [task.id for task in view.tasks.find("slot", slot_key(old))] == [old.id, new.id]


def test_tasks_without_a_node_are_not_indexed_by_node() -> None:
    service = a_service()

    view = make_store(service, a_task(service, 1), a_task(service, 2, node_id="n1")).view

    assert view.tasks.count("node", "") == 0
    assert view.tasks.count("node", "n1") == 1


def test_nodes_are_found_by_hostname_and_by_the_beginning_of_their_id() -> None:
    one, other = a_node("host", id="abc" + "0" * 22), a_node("host", id="abd" + "0" * 22)

    view = make_store(one, other).view

    assert [node.id for node in view.nodes.find("hostname", "host")] == [one.id, other.id]
    assert [node.id for node in view.nodes.by_id_prefix("abd")] == [other.id]
    assert [node.id for node in view.nodes.by_id_prefix("ab")] == [one.id, other.id]


def test_kinds_have_their_words() -> None:
    assert kind_of(a_service()) == "service"
    assert kind_of(a_secret()) == "secret"
