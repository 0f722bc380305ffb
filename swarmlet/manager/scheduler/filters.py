"""Which nodes can run a task, and in what words a task is told that none can.

A filter is made for one task, says whether it has anything to check, checks one node,
and explains how many it turned away. Words and order are SwarmKit's
(manager/scheduler/filter.go).
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from swarmlet.api import pb
from swarmlet.api.constraints import node_matches
from swarmlet.manager.scheduler.ledger import NodeAccount, host_ports

_ARCHITECTURE_SYNONYMS = {"x86_64": "amd64", "aarch64": "arm64"}


class Filter(Protocol):
    def __init__(self, task: pb.Task) -> None: ...

    @property
    def applies(self) -> bool:
        """Whether the task asks for anything that this filter checks."""

    def check(self, account: NodeAccount) -> bool: ...

    def explain(self, count: int) -> str:
        """What it means that `count` nodes did not pass."""


class Ready:
    """The node is up and takes new tasks."""

    applies = True

    def __init__(self, task: pb.Task) -> None: ...

    def check(self, account: NodeAccount) -> bool:
        node = account.node
        is_ready = node.status.state == pb.NODE_STATE_READY
        return is_ready and node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE

    def explain(self, count: int) -> str:
        return f"{_nodes(count)} not available for new tasks"


class Resources:
    """What the task reserves is not reserved by others."""

    def __init__(self, task: pb.Task) -> None:
        self._reserved = task.spec.resources.reservations
        self._generic: Counter[str] = Counter()
        for resource in self._reserved.generic_resources:
            self._generic[resource.discrete.kind or resource.named.kind] += resource.discrete.value or 1

    @property
    def applies(self) -> bool:
        return bool(self._reserved.nano_cpus or self._reserved.memory_bytes or self._generic)

    def check(self, account: NodeAccount) -> bool:
        return (
            self._reserved.nano_cpus <= account.nano_cpus
            and self._reserved.memory_bytes <= account.memory_bytes
            and all(account.generic[kind] >= amount for kind, amount in self._generic.items())
        )

    def explain(self, count: int) -> str:
        return f"insufficient resources on {_nodes(count)}"


class Constraints:
    """The node satisfies the placement constraints."""

    def __init__(self, task: pb.Task) -> None:
        self._expressions = task.spec.placement.constraints

    @property
    def applies(self) -> bool:
        return bool(self._expressions)

    def check(self, account: NodeAccount) -> bool:
        return node_matches(self._expressions, account.node)

    def explain(self, count: int) -> str:
        return f"scheduling constraints not satisfied on {_nodes(count)}"


class Platform:
    """The image exists for the node's operating system and processor."""

    def __init__(self, task: pb.Task) -> None:
        self._platforms = [self._normal(p) for p in task.spec.placement.platforms]

    @property
    def applies(self) -> bool:
        return bool(self._platforms)

    def check(self, account: NodeAccount) -> bool:
        has_os, has_architecture = self._normal(account.node.description.platform)
        return any(
            os in ("", has_os) and architecture in ("", has_architecture)
            for os, architecture in self._platforms
        )

    def explain(self, count: int) -> str:
        return f"unsupported platform on {_nodes(count)}"

    def _normal(self, platform: pb.Platform) -> tuple[str, str]:
        return platform.os, _ARCHITECTURE_SYNONYMS.get(platform.architecture, platform.architecture)


class HostPorts:
    """No other task on the node publishes the same port in host mode."""

    def __init__(self, task: pb.Task) -> None:
        self._ports = list(host_ports(task))

    @property
    def applies(self) -> bool:
        return bool(self._ports)

    def check(self, account: NodeAccount) -> bool:
        return not any(account.host_ports[port] for port in self._ports)

    def explain(self, count: int) -> str:
        return f"host-mode port already in use on {_nodes(count)}"


class MaxReplicas:
    """The node has fewer tasks of the service than may be on one node."""

    def __init__(self, task: pb.Task) -> None:
        self._service_id = task.service_id
        self._limit = task.spec.placement.max_replicas

    @property
    def applies(self) -> bool:
        return self._limit > 0

    def check(self, account: NodeAccount) -> bool:
        return account.tasks_by_service[self._service_id] < self._limit

    def explain(self, count: int) -> str:
        return "max replicas per node limit exceed"


FILTERS: tuple[type[Filter], ...] = (Ready, Resources, Constraints, Platform, HostPorts, MaxReplicas)


class Pipeline:
    """All filters that concern one task, in order; counts what each turned away."""

    def __init__(self, task: pb.Task) -> None:
        made = [kind(task) for kind in FILTERS]
        self._filters = [f for f in made if f.applies]
        self._refused = [0] * len(self._filters)

    def passes(self, account: NodeAccount) -> bool:
        for number, each in enumerate(self._filters):
            if not each.check(account):
                self._refused[number] += 1
                return False
        return True

    def explain(self) -> str:
        """Why no node was found; the filter that turned away most comes first."""
        refused = sorted(zip(self._refused, self._filters, strict=True), key=lambda r: -r[0])
        reasons = "; ".join(each.explain(count) for count, each in refused if count)
        return f"no suitable node ({reasons})" if reasons else "no suitable node"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
