"""Who serves the published ports: the endpoint table that every node is sent.

Kept by the dispatcher, one entry per service with published ingress ports. An
entry is computed whole from the stored tasks, so it cannot drift; the table says
which tasks left it since, because their shutdown has to wait.
"""

from __future__ import annotations

from collections.abc import Sequence

from swarmlet.api import pb, taskstate
from swarmlet.store.tables import Tables


class EndpointTable:
    """The table as it was last computed. `revision` rises with every change of it."""

    def __init__(self) -> None:
        self.services: dict[str, pb.ServiceEndpoints] = {}
        self.revision = 0
        self._active: dict[str, frozenset[str]] = {}
        self._active_tasks: set[str] = set()

    def is_active(self, task_id: str) -> bool:
        """Whether nodes may have been told to send new connections to the task."""
        return task_id in self._active_tasks

    def refresh(self, view: Tables, service_id: str) -> frozenset[str] | None:
        """Computes one service's entry again.

        Returns None when nothing changed, else the ids of the tasks that took new
        connections before and do not any more.
        """
        old = self.services.get(service_id)
        new = endpoints_of(view, service_id)
        if new == old:
            return None
        self.revision += 1
        before = self._active.pop(service_id, frozenset())
        after: frozenset[str] = frozenset()
        if new is None:
            del self.services[service_id]
        else:
            self.services[service_id] = new
            after = frozenset(e.task_id for e in new.endpoints if e.state == pb.ENDPOINT_STATE_ACTIVE)
            self._active[service_id] = after
        self._active_tasks -= before
        self._active_tasks |= after
        return before - after


def endpoints_of(view: Tables, service_id: str) -> pb.ServiceEndpoints | None:
    """A service's entry as the store has it now; None for one without published ingress ports."""
    service = view.services.get(service_id)
    if service is None:
        return None
    ports = ingress_ports(service)
    if not ports:
        return None
    entry = pb.ServiceEndpoints(service_id=service.id, service_name=service.spec.name, ports=ports)
    serving = [task for task in view.tasks.find("service", service_id) if _serves(view, task)]
    for task in sorted(serving, key=lambda t: t.id):
        own_ports = [p for p in task.endpoint.ports if p.publish_mode == pb.PUBLISH_MODE_INGRESS]
        entry.endpoints.add(
            task_id=task.id,
            node_id=task.node_id,
            state=_state_of(task),
            addresses=task.status.endpoint_addresses,
            ports=own_ports if own_ports != ports else (),
        )
    return entry


def ingress_ports(service: pb.Service) -> Sequence[pb.PortConfig]:
    """The ports that every node listens on, once they have a number."""
    ports = service.endpoint.ports or service.spec.endpoint_spec.ports
    return [p for p in ports if p.publish_mode == pb.PUBLISH_MODE_INGRESS and p.published_port]


def affects_endpoints(old: pb.Task | None, new: pb.Task | None) -> bool:
    """Whether a task's change can change its service's entry."""
    return _endpoint_facts(old) != _endpoint_facts(new)


def _serves(view: Tables, task: pb.Task) -> bool:
    if task.status.state != pb.TASK_STATE_RUNNING or not task.status.endpoint_addresses:
        return False
    node = view.nodes.get(task.node_id)
    return node is not None and node.status.state != pb.NODE_STATE_DOWN


def _state_of(task: pb.Task) -> pb.EndpointState.ValueType:
    return pb.ENDPOINT_STATE_ACTIVE if taskstate.is_running(task) else pb.ENDPOINT_STATE_DRAINING


def _endpoint_facts(task: pb.Task | None) -> object:
    if task is None or task.status.state != pb.TASK_STATE_RUNNING:
        return None
    return (
        task.desired_state,
        task.node_id,
        [a.SerializeToString() for a in task.status.endpoint_addresses],
    )
