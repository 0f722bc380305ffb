"""Placement constraints: `node.labels.zone == east`, `node.role != manager`.

Read by the scheduler, the orchestrators and, to refuse nonsense early, by control.
Syntax, case rules and error texts are SwarmKit's (manager/constraint): keys and
values compare without case, the name of a label with it, and an absent fact is the
empty string, which `==` never meets and `!=` always does.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument

NODE_LABEL_PREFIX = "node.labels."
ENGINE_LABEL_PREFIX = "engine.labels."
_OPERATORS = ("==", "!=")
_KEY = re.compile(r"[a-z_][a-z0-9\-_.]+", re.IGNORECASE | re.ASCII)
_VALUE = re.compile(r"[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Constraint:
    key: str
    is_equality: bool
    value: str

    def matches(self, node: pb.Node) -> bool:
        """Whether the node satisfies it. A key that names nothing known is never satisfied."""
        key = self.key.lower()
        if key == "node.ip":
            return self._matches_address(node.status.addr)
        fact = node_fact(node, self.key)
        if fact is None:
            return False
        return (fact.casefold() == self.value.casefold()) == self.is_equality

    def _matches_address(self, address: str) -> bool:
        try:
            network = ipaddress.ip_network(self.value, strict=False)
        except ValueError:
            return False
        try:
            is_inside = ipaddress.ip_address(address) in network
        except ValueError:
            is_inside = False
        return is_inside == self.is_equality


def parse_constraints(expressions: Iterable[str]) -> list[Constraint]:
    """Raises InvalidArgument, in Docker's words, for the first expression that is not one."""
    return [_parse(expression) for expression in expressions]


@lru_cache(maxsize=1024)
def _parse(expression: str) -> Constraint:
    operator = next((o for o in _OPERATORS if o in expression), None)
    if operator is None:
        raise InvalidArgument(f"constraint expected one operator from {', '.join(_OPERATORS)}")
    key, _, value = expression.partition(operator)
    key, value = key.strip(), value.strip()
    if _KEY.fullmatch(key) is None:
        raise InvalidArgument(f"key '{key}' is invalid")
    if _VALUE.fullmatch(value) is None:
        raise InvalidArgument(f"value '{value}' is invalid")
    return Constraint(key, operator == "==", value)


def node_matches(expressions: Iterable[str], node: pb.Node) -> bool:
    """Whether the node satisfies all; an expression that cannot be read is satisfied by no node."""
    try:
        return all(constraint.matches(node) for constraint in parse_constraints(expressions))
    except InvalidArgument:
        return False


def node_fact(node: pb.Node, key: str) -> str | None:
    """What the node says for `node.hostname`, `node.labels.zone` ...; None for a key that does not exist."""
    lowered = key.lower()
    if lowered.startswith(NODE_LABEL_PREFIX) and len(key) > len(NODE_LABEL_PREFIX):
        return node.spec.labels.get(key[len(NODE_LABEL_PREFIX) :], "")
    if lowered.startswith(ENGINE_LABEL_PREFIX) and len(key) > len(ENGINE_LABEL_PREFIX):
        return node.description.engine.labels.get(key[len(ENGINE_LABEL_PREFIX) :], "")
    if lowered == "node.id":
        return node.id
    if lowered == "node.hostname":
        return node.description.hostname
    if lowered == "node.role":
        return "manager" if node.spec.role == pb.NODE_ROLE_MANAGER else "worker"
    if lowered == "node.platform.os":
        return node.description.platform.os
    if lowered == "node.platform.arch":
        return node.description.platform.architecture
    return None
