"""What is over: tasks of removed services and nodes, and history beyond what is kept.

A task is deleted once it is meant to be removed and has stopped (or was never given to
a node). Of each slot the newest tasks that ended stay, as many as the cluster's task
history says; more when the restart policy counts on them, and one at least as long as
an update has to see what the slot's task replaced.

Keys: a slot's key; ("service", id) for a service that is gone; ("node", id) for a node
that is gone; ("history", service id or "") when how much is kept may have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from swarmlet.api import pb
from swarmlet.api.taskstate import is_terminal
from swarmlet.manager.orchestrator.slot import UPDATING
from swarmlet.manager.orchestrator.tasks import age_order, is_wanted_up, stopped
from swarmlet.manager.reconcile import Edit, Key, Plan
from swarmlet.store.store import Transaction
from swarmlet.store.tables import Tables, slot_key
from swarmlet.store.watch import Change

HISTORY_DEFAULT = 5


class Reaper:
    """Controller that forgets tasks."""

    name = "reaper"

    def keys(self, change: Change) -> Iterable[Key]:
        value = change.current
        if isinstance(value, pb.Task):
            if change.new is not None and _is_of_interest(value, is_new=change.old is None):
                yield slot_key(value)
        elif isinstance(value, pb.Service):
            if change.new is None:
                yield ("service", value.id)
            elif _update_ended(change.old, value):
                yield ("history", value.id)
        elif isinstance(value, pb.Node):
            if change.new is None:
                yield ("node", value.id)
        elif isinstance(value, pb.Cluster) and _history_changed(change.old, value):
            yield ("history", "")

    def all_keys(self, view: Tables) -> Iterable[Key]:
        tasks = list(view.tasks)
        yield from {slot_key(task) for task in tasks}
        yield from {("service", t.service_id) for t in tasks if view.services.get(t.service_id) is None}
        yield from {("node", t.node_id) for t in tasks if t.node_id and view.nodes.get(t.node_id) is None}

    def plan(self, view: Tables, key: Key, now: datetime) -> Plan:
        plan = Plan()
        match key:
            case ("service", str(service_id)):
                if view.services.get(service_id) is None:
                    plan.edits.extend(_remove_all(view.tasks.find("service", service_id), now))
            case ("node", str(node_id)):
                if view.nodes.get(node_id) is None:
                    plan.edits.extend(_orphan_all(view.tasks.find("node", node_id), now))
            case ("history", str(service_id)):
                tasks = view.tasks.find("service", service_id) if service_id else view.tasks
                for slot in dict.fromkeys(slot_key(task) for task in tasks):
                    _plan_slot(view, view.tasks.find("slot", slot), now, plan)
            case _:
                _plan_slot(view, view.tasks.find("slot", key), now, plan)
        return plan


def _is_of_interest(task: pb.Task, *, is_new: bool) -> bool:
    return is_new or is_terminal(task.status.state) or task.desired_state == pb.TASK_STATE_REMOVE


def _update_ended(old: object, new: pb.Service) -> bool:
    return (
        isinstance(old, pb.Service)
        and old.update_status.state in UPDATING
        and new.update_status.state not in UPDATING
    )


def _history_changed(old: object, new: pb.Cluster) -> bool:
    return not isinstance(old, pb.Cluster) or old.spec.orchestration != new.spec.orchestration


def _remove_all(tasks: Iterable[pb.Task], now: datetime) -> Iterator[Edit]:
    return (
        _remove(task.id, now) for task in tasks if _is_over(task) or task.desired_state < pb.TASK_STATE_REMOVE
    )


def _orphan_all(tasks: Iterable[pb.Task], now: datetime) -> Iterator[Edit]:
    return (_orphan(task.id, now) for task in tasks if not is_terminal(task.status.state))


def _plan_slot(view: Tables, tasks: list[pb.Task], now: datetime, plan: Plan) -> None:
    if not tasks:
        return
    service = view.services.get(tasks[0].service_id)
    if service is None:
        plan.edits.extend(_remove_all(tasks, now))
        return
    plan.edits.extend(
        _forget(task.id) for task in tasks if task.desired_state == pb.TASK_STATE_REMOVE and _is_over(task)
    )
    history = [t for t in tasks if t.desired_state == pb.TASK_STATE_SHUTDOWN and is_terminal(t.status.state)]
    kept = _history_kept(view, service, tasks)
    if 0 <= kept < len(history):
        history.sort(key=age_order)
        plan.edits.extend(_forget(task.id) for task in history[: len(history) - kept])


def _history_kept(view: Tables, service: pb.Service, tasks: list[pb.Task]) -> int:
    """How many tasks of a slot stay after their end; negative: all."""
    cluster = view.cluster()
    orchestration = cluster.spec.orchestration if cluster else pb.OrchestrationConfig()
    has_limit = orchestration.HasField("task_history_retention_limit")
    kept = orchestration.task_history_retention_limit if has_limit else HISTORY_DEFAULT
    if kept < 0:
        return -1
    attempts = service.spec.task_template.restart_policy.max_attempts
    if attempts:
        kept = max(kept, attempts + 1)
    is_settled = service.update_status.state not in UPDATING and any(
        is_wanted_up(t) and t.status.state == pb.TASK_STATE_RUNNING for t in tasks
    )
    return kept if is_settled else max(kept, 1)


def _is_over(task: pb.Task) -> bool:
    return is_terminal(task.status.state) or task.status.state < pb.TASK_STATE_ASSIGNED


def _remove(task_id: str, now: datetime) -> Edit:
    """Removes what is left of a service that is gone: at once, or once it has stopped."""

    def edit(tx: Transaction) -> None:
        task = tx.get(pb.Task, task_id)
        if task is None:
            return
        if _is_over(task):
            tx.delete(pb.Task, task_id)
        elif task.desired_state < pb.TASK_STATE_REMOVE:
            # Perhaps the scheduler has only just given it to a node.
            tx.update(stopped(task, pb.TASK_STATE_REMOVE, now))

    return edit


def _forget(task_id: str) -> Edit:
    def edit(tx: Transaction) -> None:
        task = tx.get(pb.Task, task_id)
        if task is not None and _is_over(task) and not is_wanted_up(task):
            tx.delete(pb.Task, task_id)

    return edit


def _orphan(task_id: str, now: datetime) -> Edit:
    def edit(tx: Transaction) -> None:
        task = tx.get(pb.Task, task_id)
        if task is None or is_terminal(task.status.state) or tx.get(pb.Node, task.node_id) is not None:
            return
        changed = pb.Task()
        changed.CopyFrom(task)
        changed.status.state = pb.TASK_STATE_ORPHANED
        changed.status.message = "node was removed"
        changed.status.timestamp.FromDatetime(now)
        del changed.status.endpoint_addresses[:]
        tx.update(changed)

    return edit
