"""Published ports: one ingress port per protocol in the whole cluster belongs to one service.

Ports that the user left open are taken from 30000-32767, the lowest free one, and are
kept across updates. Once its service has its ports, a task goes from NEW to PENDING,
with a copy of the service's endpoint; when a port cannot be had, the tasks say so.
Host-mode ports are checked where they clash, by the scheduler.

Keys are service ids, and "waiting" for those that wait for a port, when ports changed hands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from swarmlet.api import pb
from swarmlet.manager.reconcile import Edit, Key, Plan
from swarmlet.store.store import Transaction
from swarmlet.store.tables import Tables
from swarmlet.store.watch import Change

DYNAMIC_PORTS = range(30000, 32768)
ALLOCATED_MESSAGE = "pending task scheduling"
WAITING = "waiting"

_Port = tuple[int, int]
"""(protocol, published port)"""


class PortUnavailable(Exception):
    """The text is what the tasks of the service say."""


class PortAllocator:
    """Controller of published ports, and of the step from NEW to PENDING."""

    name = "ports"

    def keys(self, change: Change) -> Iterable[Key]:
        value = change.current
        if isinstance(value, pb.Task):
            if change.new is not None and value.status.state == pb.TASK_STATE_NEW:
                yield value.service_id
        elif isinstance(value, pb.Service):
            yield value.id
            if isinstance(change.old, pb.Service) and _ports_changed_hands(change.old, change.new):
                yield WAITING

    def all_keys(self, view: Tables) -> Iterable[Key]:
        return [service.id for service in view.services]

    def plan(self, view: Tables, key: Key, now: datetime) -> Plan:
        if key == WAITING:
            return self._plan_waiting(view, now)
        plan = Plan()
        service = view.services.get(str(key))
        if service is None:
            return plan
        if _is_allocated(service):
            plan.edits.extend(_advance(task.id, now) for task in _new_tasks(view, service.id))
            return plan
        error = ""
        try:
            _assign(service, [other for other in view.services if other.id != service.id])
            plan.edits.append(_allocate(service.id))
        except PortUnavailable as unavailable:
            error = str(unavailable)
        waiting = _new_tasks(view, service.id)
        plan.edits.extend(_explain(task.id, error) for task in waiting if task.status.err != error)
        return plan

    def _plan_waiting(self, view: Tables, now: datetime) -> Plan:
        plan = Plan()
        for service in view.services:
            if not _is_allocated(service):
                plan.edits.extend(self.plan(view, service.id, now).edits)
        return plan


def _new_tasks(view: Tables, service_id: str) -> list[pb.Task]:
    """Tasks that wait for their service; found by the smaller of two indexes."""
    of_service = view.tasks.count("service", service_id)
    if of_service <= view.tasks.count("state", pb.TASK_STATE_NEW):
        return [t for t in view.tasks.find("service", service_id) if t.status.state == pb.TASK_STATE_NEW]
    return [t for t in view.tasks.find("state", pb.TASK_STATE_NEW) if t.service_id == service_id]


def _ports_changed_hands(old: pb.Service, new: object) -> bool:
    if not isinstance(new, pb.Service):
        return bool(old.endpoint.ports)
    return old.endpoint.ports != new.endpoint.ports


def _is_allocated(service: pb.Service) -> bool:
    return service.endpoint.spec == service.spec.endpoint_spec and len(service.endpoint.ports) == len(
        service.spec.endpoint_spec.ports
    )


def _assign(service: pb.Service, others: list[pb.Service]) -> pb.Endpoint:
    """The endpoint that the service's spec asks for. Raises PortUnavailable."""
    wanted = service.spec.endpoint_spec.ports
    endpoint = pb.Endpoint(spec=service.spec.endpoint_spec, virtual_ips=service.endpoint.virtual_ips)
    taken = {port: other for other in others for port in _ingress_ports(other.endpoint.ports)}
    # What another service asks for by number is left to it, even before it has it.
    avoided = {port for spec in [service, *others] for port in _ingress_ports(spec.spec.endpoint_spec.ports)}
    avoided.update(taken)
    for asked in wanted:
        port = endpoint.ports.add()
        port.CopyFrom(asked)
        if asked.publish_mode != pb.PUBLISH_MODE_INGRESS:
            continue
        if not asked.published_port:
            port.published_port = _keep(asked, service.endpoint.ports, avoided) or _lowest_free(
                asked, avoided
            )
            avoided.add((port.protocol, port.published_port))
        holder = taken.get((port.protocol, port.published_port))
        if holder is not None:
            raise PortUnavailable(
                f"port '{port.published_port}' is already in use by service '{holder.spec.name}' "
                f"({holder.id}) as an ingress port"
            )
    return endpoint


def _ingress_ports(ports: Iterable[pb.PortConfig]) -> Iterator[_Port]:
    return (
        (p.protocol, p.published_port)
        for p in ports
        if p.publish_mode == pb.PUBLISH_MODE_INGRESS and p.published_port
    )


def _keep(asked: pb.PortConfig, held: Iterable[pb.PortConfig], avoided: set[_Port]) -> int:
    """The port that the service already had for the same target, so that it stays; 0: none."""
    for port in held:
        is_same = (port.name, port.protocol, port.target_port) == (
            asked.name,
            asked.protocol,
            asked.target_port,
        )
        is_dynamic = port.publish_mode == pb.PUBLISH_MODE_INGRESS and port.published_port in DYNAMIC_PORTS
        if is_same and is_dynamic and (port.protocol, port.published_port) not in avoided:
            return port.published_port
    return 0


def _lowest_free(asked: pb.PortConfig, avoided: set[_Port]) -> int:
    for number in DYNAMIC_PORTS:
        if (asked.protocol, number) not in avoided:
            return number
    raise PortUnavailable(
        f"no published port is left for target port {asked.target_port}: {DYNAMIC_PORTS[0]} to "
        f"{DYNAMIC_PORTS[-1]} are all in use; publish a port of your choice or remove a service"
    )


def _allocate(service_id: str) -> Edit:
    def edit(tx: Transaction) -> None:
        service = tx.get(pb.Service, service_id)
        if service is None or _is_allocated(service):
            return
        # Another service of the same round may have been given a port a moment ago.
        present = (tx.get(pb.Service, other.id) for other in tx.view.services if other.id != service_id)
        try:
            endpoint = _assign(service, [other for other in present if other is not None])
        except PortUnavailable:
            # The change of the other service brings the key "waiting", and then the tasks say why.
            return
        changed = pb.Service()
        changed.CopyFrom(service)
        changed.endpoint.CopyFrom(endpoint)
        tx.update(changed)

    return edit


def _advance(task_id: str, now: datetime) -> Edit:
    def edit(tx: Transaction) -> None:
        task = tx.get(pb.Task, task_id)
        service = tx.get(pb.Service, task.service_id) if task is not None else None
        if task is None or service is None or task.status.state != pb.TASK_STATE_NEW:
            return
        if not _is_allocated(service):
            return
        changed = pb.Task()
        changed.CopyFrom(task)
        if task.endpoint.spec == service.endpoint.spec:
            changed.endpoint.CopyFrom(service.endpoint)
        else:
            # Of another revision than the service's: only its host-mode ports are its own.
            changed.endpoint.ClearField("ports")
            changed.endpoint.ports.extend(task.endpoint.spec.ports)
        changed.status.state = pb.TASK_STATE_PENDING
        changed.status.message = ALLOCATED_MESSAGE
        changed.status.ClearField("err")
        changed.status.timestamp.FromDatetime(now)
        tx.update(changed)

    return edit


def _explain(task_id: str, error: str) -> Edit:
    def edit(tx: Transaction) -> None:
        task = tx.get(pb.Task, task_id)
        if task is None or task.status.state != pb.TASK_STATE_NEW or task.status.err == error:
            return
        changed = pb.Task()
        changed.CopyFrom(task)
        changed.status.err = error
        tx.update(changed)

    return edit
