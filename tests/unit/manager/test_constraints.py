"""Placement constraints: what is accepted, and which node satisfies what."""

from __future__ import annotations

import pytest

from swarmlet.api import pb
from swarmlet.api.constraints import node_matches, parse_constraints
from swarmlet.api.errors import InvalidArgument
from tests.builders import a_node


def the_node() -> pb.Node:
    node = a_node("Worker-1", labels={"zone": "east", "Disk": "fast"}, role=pb.NODE_ROLE_MANAGER, id="abc123")
    node.description.engine.labels["storage"] = "zfs"
    node.status.addr = "10.1.2.3"
    return node


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        ("node.id==abc123", True),
        ("node.id != abc123", False),
        ("node.hostname == worker-1", True),
        ("NODE.HOSTNAME==WORKER-1", True),
        ("node.hostname!=worker-1", False),
        ("node.role==manager", True),
        ("node.role == Manager", True),
        ("node.role==worker", False),
        ("node.role!=worker", True),
        ("node.labels.zone==east", True),
        ("node.labels.zone==EAST", True),
        ("node.labels.Zone==east", False),
        ("node.labels.Disk==fast", True),
        ("node.labels.disk==fast", False),
        ("node.labels.none!=x", True),
        ("node.labels.none==x", False),
        ("engine.labels.storage==zfs", True),
        ("engine.labels.other==zfs", False),
        ("node.platform.os==linux", True),
        ("node.platform.arch==x86_64", True),
        ("node.platform.arch!=x86_64", False),
        ("node.ip==10.1.2.3", True),
        ("node.ip==10.1.0.0/16", True),
        ("node.ip!=10.1.0.0/16", False),
        ("node.ip==nonsense", False),
        ("node.colour==red", False),
        ("node.colour!=red", False),
    ],
)
def test_a_node_satisfies_a_constraint_or_not(expression: str, matches: bool) -> None:
    assert node_matches([expression], the_node()) is matches


def test_all_constraints_have_to_be_satisfied() -> None:
    assert node_matches(["node.role==manager", "node.labels.zone==east"], the_node())
    assert not node_matches(["node.role==manager", "node.labels.zone==west"], the_node())
    assert node_matches([], the_node())


def test_a_node_without_an_address_is_in_no_network() -> None:
    node = the_node()
    node.status.addr = ""

    assert not node_matches(["node.ip==10.0.0.0/8"], node)
    assert node_matches(["node.ip!=10.0.0.0/8"], node)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("node.role", "constraint expected one operator from ==, !="),
        ("node.role=manager", "constraint expected one operator from ==, !="),
        ("", "constraint expected one operator from ==, !="),
        ("==manager", "key '' is invalid"),
        ("no de==x", "key 'no de' is invalid"),
        ("1node==x", "key '1node' is invalid"),
        ("node.role==", "value '' is invalid"),
        ("node.role==a>b", "value 'a>b' is invalid"),
        ("node.role===x", "value '=x' is invalid"),
    ],
)
def test_what_is_no_constraint_is_refused_in_dockers_words(expression: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse_constraints([expression])

    assert str(error.value) == message


def test_a_stored_constraint_that_cannot_be_read_is_satisfied_by_no_node() -> None:
    assert not node_matches(["nonsense"], the_node())
