"""What the tasks on each node use: resources, host ports, counts, recent failures.

Made from the store's index of tasks by node. A node's account is made anew only when
its node or one of its tasks is another object than last time; since stored objects
are never changed in place, that is a comparison of identities, and one pass over a
large cluster costs what changed in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from hashlib import blake2b

from swarmlet.api import pb
from swarmlet.api.taskstate import is_occupying
from swarmlet.manager.orchestrator.tasks import ended_at
from swarmlet.store.tables import Tables

FAILURES_WINDOW = timedelta(minutes=5)
HostPort = tuple[int, int]
"""(protocol, port)"""
_Revision = tuple[str, int]


class NodeAccount:
    """One node as the filters see it; `add` books a task that this pass gives to it."""

    def __init__(self, node: pb.Node, tasks: Iterable[pb.Task]) -> None:
        self.node = node
        self.tie_breaker = blake2b(node.id.encode(), digest_size=8).digest()
        resources = node.description.resources
        self.nano_cpus = resources.nano_cpus
        self.memory_bytes = resources.memory_bytes
        self.generic = _generic_amounts(resources.generic_resources)
        self.host_ports: Counter[HostPort] = Counter()
        self.tasks_by_service: Counter[str] = Counter()
        self.tasks = 0
        self._failures: dict[_Revision, list[datetime]] = {}
        for task in tasks:
            if is_occupying(task):
                self.add(task)
            elif task.status.state in (pb.TASK_STATE_FAILED, pb.TASK_STATE_REJECTED):
                self._failures.setdefault(_revision(task), []).append(ended_at(task))

    def add(self, task: pb.Task) -> None:
        self._book(task, 1)

    def remove(self, task: pb.Task) -> None:
        """Takes back an `add` of the same task."""
        self._book(task, -1)

    def _book(self, task: pb.Task, sign: int) -> None:
        reserved = task.spec.resources.reservations
        self.nano_cpus -= sign * reserved.nano_cpus
        self.memory_bytes -= sign * reserved.memory_bytes
        if reserved.generic_resources:
            for kind, amount in _generic_amounts(reserved.generic_resources).items():
                self.generic[kind] -= sign * amount
        for port in host_ports(task):
            self.host_ports[port] += sign
        # One that is being stopped still uses the node, but is no reason to avoid it.
        if task.desired_state <= pb.TASK_STATE_COMPLETE:
            self.tasks += sign
            self.tasks_by_service[task.service_id] += sign

    def recent_failures(self, task: pb.Task, now: datetime) -> int:
        """How often the task's revision of its service failed here lately."""
        failures = self._failures.get(_revision(task))
        return sum(now - at < FAILURES_WINDOW for at in failures) if failures else 0


def host_ports(task: pb.Task) -> Iterator[HostPort]:
    for port in task.endpoint.ports:
        if port.publish_mode == pb.PUBLISH_MODE_HOST and port.published_port:
            yield (port.protocol, port.published_port)


def _revision(task: pb.Task) -> _Revision:
    return (task.service_id, task.spec_version.index)


def _generic_amounts(resources: Iterable[pb.GenericResource]) -> Counter[str]:
    amounts: Counter[str] = Counter()
    for resource in resources:
        if resource.HasField("discrete"):
            amounts[resource.discrete.kind] += resource.discrete.value
        else:
            amounts[resource.named.kind] += 1
    return amounts


class Ledger:
    """The accounts of all nodes, remembered from one pass to the next."""

    def __init__(self) -> None:
        self._accounts: dict[str, tuple[pb.Node, list[pb.Task], list[int], NodeAccount]] = {}

    def accounts(self, view: Tables) -> dict[str, NodeAccount]:
        """Every node's account as of `view`. What a pass added to them must be removed before the next."""
        present: dict[str, tuple[pb.Node, list[pb.Task], list[int], NodeAccount]] = {}
        for node in view.nodes:
            tasks = view.tasks.find("node", node.id)
            # The tasks are kept with their identities, so that none of these is given to another object.
            identities = [id(task) for task in tasks]
            known = self._accounts.get(node.id)
            if known is not None and known[0] is node and known[2] == identities:
                present[node.id] = known
            else:
                present[node.id] = (node, tasks, identities, NodeAccount(node, tasks))
        self._accounts = present
        return {node_id: entry[3] for node_id, entry in present.items()}
