"""Global services: one task on every node that is up, not drained, and meets the constraints.

The node is the slot. Keys are service ids, and ("node", id) for one node and all
global services.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from swarmlet.api import pb
from swarmlet.api.constraints import node_matches
from swarmlet.manager.orchestrator.replicated import service_keys
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
from swarmlet.store.tables import Tables
from swarmlet.store.watch import Change


class Global:
    """Controller of global services."""

    name = "global"

    def keys(self, change: Change) -> Iterable[Key]:
        return service_keys(change)

    def all_keys(self, view: Tables) -> Iterable[Key]:
        return [service.id for service in view.services if mode_of(service) == "global"]

    def plan(self, view: Tables, key: Key, now: datetime) -> Plan:
        plan = Plan()
        if isinstance(key, tuple):
            _plan_node(view, key[1], now, plan)
        else:
            service = view.services.get(str(key))
            if service is not None and mode_of(service) == "global":
                _plan_service(Situation(view, service, now), plan)
        return plan


def _plan_node(view: Tables, node_id: str, now: datetime, plan: Plan) -> None:
    for service in view.services:
        if mode_of(service) == "global":
            s = Situation(view, service, now)
            tasks = view.tasks.find("slot", (service.id, 0, node_id))
            if any(is_wanted_up(task) and s.revision.is_outdated(task) for task in tasks):
                # A paused node has no part in updates; now that it may, the service has one again.
                _plan_service(s, plan)
            else:
                _plan_slot_of_node(s, node_id, tasks, plan)


def _plan_service(s: Situation, plan: Plan) -> None:
    by_node: dict[str, list[pb.Task]] = {node.id: [] for node in s.view.nodes}
    for task in s.view.tasks.find("service", s.service.id):
        by_node.setdefault(task.node_id, []).append(task)
    slots = [_plan_slot_of_node(s, node_id, tasks, plan) for node_id, tasks in by_node.items()]
    plan_rollout(s, [slot for slot in slots if slot is not None], plan)


def _plan_slot_of_node(s: Situation, node_id: str, tasks: list[pb.Task], plan: Plan) -> SlotTasks | None:
    """Returns the slot when it takes part in updates."""
    node = s.view.nodes.get(node_id)
    if node is None or not _may_run_on(s, node):
        plan.edits.extend(stop(task.id, s.now) for task in tasks if is_wanted_up(task))
        return None
    if node.spec.availability == pb.NODE_AVAILABILITY_PAUSE:
        # What runs stays, what ended is not started again until the node takes new tasks.
        plan.edits.extend(stop(t.id, s.now) for t in tasks if is_wanted_up(t) and not s.is_healthy(t))
        return None
    slot = sort_slot(s, tasks) if tasks else None
    if slot is None or not (slot.current or slot.outdated or is_given_up(slot)):
        plan.edits.append(fill(s, 0, node_id, tasks))
        return None
    plan_slot(s, slot, plan)
    return slot


def _may_run_on(s: Situation, node: pb.Node) -> bool:
    return (
        node.status.state != pb.NODE_STATE_DOWN
        and node.spec.availability != pb.NODE_AVAILABILITY_DRAIN
        and node_matches(s.service.spec.task_template.placement.constraints, node)
    )
