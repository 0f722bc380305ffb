"""The slow check of the tables finds what a defect would leave behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swarmlet.api import pb
from swarmlet.store.tables import Tables
from swarmlet.store.verify import loose_ends, violations
from tests.builders import a_cluster, a_node, a_service, a_task, make_store


@pytest.fixture
def tables() -> Tables:
    node, service = a_node(), a_service("web")
    return make_store(a_cluster(), node, service, a_task(service, node_id=node.id)).view


def _index_lost(tables: Tables) -> None:
    tables.tasks._by_key["service"].clear()


def _name_lost(tables: Tables) -> None:
    tables.services._by_name.clear()


def _two_names(tables: Tables) -> None:
    tables.services.put(a_service("web"))


def _two_clusters(tables: Tables) -> None:
    tables.clusters.put(a_cluster("second"))


def _too_new(tables: Tables) -> None:
    tables.nodes.put(a_node(version=pb.Version(index=9)))


def _without_service(tables: Tables) -> None:
    (task,) = tables.tasks
    changed = pb.Task()
    changed.CopyFrom(task)
    changed.service_id = ""
    tables.tasks.put(changed)


def _on_no_node(tables: Tables) -> None:
    tables.tasks.put(a_task(a_service("other")))


def test_tables_that_are_right_have_no_violations(tables: Tables) -> None:
    assert list(violations(tables, 1)) == []
    assert list(loose_ends(tables)) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_index_lost, "the service index of tasks"),
        (_name_lost, "the name index of services"),
        (_two_names, "2 services have the name web"),
        (_two_clusters, "2 cluster objects"),
        (_too_new, "has version"),
        (_without_service, "belongs to no service"),
        (_on_no_node, "RUNNING on no node"),
    ],
)
def test_each_kind_of_damage_is_named(tables: Tables, damage: Callable[[Tables], None], said: str) -> None:
    damage(tables)

    assert any(said in text for text in violations(tables, 1)), list(violations(tables, 1))


def test_references_to_what_was_removed_are_loose_ends(tables: Tables) -> None:
    (node,), (service,) = tables.nodes, tables.services
    tables.nodes.remove(node.id)
    tables.services.remove(service.id)

    assert len(list(loose_ends(tables))) == 2
    assert list(violations(tables, 1)) == []
