"""Replicated services: as many slots as replicas, one task in each.

Keys are service ids, and ("node", id) for what a node's change does to the tasks on
it. Slots are numbered from 1; new ones take the lowest free numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from swarmlet.api import pb
from swarmlet.api.taskstate import is_terminal
from swarmlet.manager.orchestrator.rollout import plan_rollout
from swarmlet.manager.orchestrator.slot import (
    Situation,
    SlotTasks,
    fill,
    is_given_up,
    plan_slot,
    sort_slot,
)
from swarmlet.manager.orchestrator.tasks import is_wanted_up, mode_of, stop
from swarmlet.manager.reconcile import Key, Plan
from swarmlet.store.tables import Tables, slot_key
from swarmlet.store.watch import Change


class Replicated:
    """Controller of replicated services."""

    name = "replicated"

    def keys(self, change: Change) -> Iterable[Key]:
        return service_keys(change)

    def all_keys(self, view: Tables) -> Iterable[Key]:
        yield from (service.id for service in view.services if mode_of(service) == "replicated")
        yield from (("node", node.id) for node in view.nodes)
        # A node that was removed while nobody led has left its tasks behind.
        yield from {
            ("node", t.node_id) for t in view.tasks if t.node_id and view.nodes.get(t.node_id) is None
        }

    def plan(self, view: Tables, key: Key, now: datetime) -> Plan:
        plan = Plan()
        if isinstance(key, tuple):
            _plan_node(view, key[1], now, plan)
        else:
            service = view.services.get(str(key))
            if service is not None and mode_of(service) == "replicated":
                _plan_service(Situation(view, service, now), plan)
        return plan


def service_keys(change: Change) -> Iterator[Key]:
    """The service of a task or service that changed, and the node whose fitness for tasks changed."""
    value = change.current
    if isinstance(value, pb.Service):
        yield value.id
    elif isinstance(value, pb.Task):
        if value.service_id and _matters_to_slots(change.old, change.new):
            yield value.service_id
    elif isinstance(value, pb.Node) and _matters_to_tasks(change.old, change.new):
        yield ("node", value.id)


def _matters_to_slots(old: object, new: object) -> bool:
    if not isinstance(old, pb.Task) or not isinstance(new, pb.Task):
        return True
    return (
        old.status.state != new.status.state
        or old.desired_state != new.desired_state
        or old.node_id != new.node_id
    )


def _matters_to_tasks(old: object, new: object) -> bool:
    """A node's heartbeat details and addresses do not; what constraints look at does."""
    if not isinstance(old, pb.Node) or not isinstance(new, pb.Node):
        return True
    return (
        old.status.state != new.status.state
        or old.status.addr != new.status.addr
        or old.spec != new.spec
        or old.description != new.description
    )


def _plan_node(view: Tables, node_id: str, now: datetime, plan: Plan) -> None:
    """The slots of the tasks on one node; the rest of their services is not touched."""
    situations: dict[str, Situation] = {}
    slots = {
        slot_key(task): task.service_id
        for task in view.tasks.find("node", node_id)
        if is_wanted_up(task) or not is_terminal(task.status.state)
    }
    for key, service_id in slots.items():
        service = view.services.get(service_id)
        if service is None or mode_of(service) != "replicated":
            continue
        situation = situations.setdefault(service_id, Situation(view, service, now))
        plan_slot(situation, sort_slot(situation, view.tasks.find("slot", key)), plan)


def _plan_service(s: Situation, plan: Plan) -> None:
    replicas = s.service.spec.mode.replicated.replicas
    by_number: dict[int, list[pb.Task]] = {}
    for task in s.view.tasks.find("service", s.service.id):
        by_number.setdefault(task.slot, []).append(task)
    slots = {number: sort_slot(s, tasks) for number, tasks in by_number.items()}
    taken = {n: slot for n, slot in slots.items() if slot.current or slot.outdated or is_given_up(slot)}

    kept = dict(sorted(taken.items()))
    for slot in _superfluous(s, list(taken.values()), len(taken) - replicas):
        del kept[slot.number]
    new_numbers = _lowest_free(taken, replicas - len(taken))
    for number in new_numbers:
        plan.edits.append(fill(s, number, "", by_number.get(number, [])))
    for number, tasks in by_number.items():
        if number not in kept and number not in new_numbers:
            _remove(s, tasks, plan)

    for slot in kept.values():
        plan_slot(s, slot, plan)
    plan_rollout(s, list(kept.values()), plan)


def _lowest_free(taken: dict[int, SlotTasks], count: int) -> list[int]:
    numbers: list[int] = []
    number = 1
    while len(numbers) < count:
        if number not in taken:
            numbers.append(number)
        number += 1
    return numbers


def _superfluous(s: Situation, slots: list[SlotTasks], count: int) -> list[SlotTasks]:
    """Slots to give up: what does not run, then where most tasks of the service are, then the highest."""
    if count <= 0:
        return []
    on_node: dict[str, int] = {}
    order: list[tuple[bool, int, int, SlotTasks]] = []
    for slot in sorted(slots, key=lambda slot: slot.number):
        running = [
            t
            for t in (*slot.current, *slot.outdated)
            if t.status.state == pb.TASK_STATE_RUNNING and s.is_healthy(t)
        ]
        nth = 0
        if running:
            nth = on_node[running[0].node_id] = on_node.get(running[0].node_id, 0) + 1
        order.append((not running, nth, slot.number, slot))
    order.sort(key=lambda entry: entry[:3], reverse=True)
    return [entry[3] for entry in order[:count]]


def _remove(s: Situation, tasks: Iterable[pb.Task], plan: Plan) -> None:
    plan.edits.extend(
        stop(task.id, s.now, pb.TASK_STATE_REMOVE)
        for task in tasks
        if task.desired_state < pb.TASK_STATE_REMOVE
    )
