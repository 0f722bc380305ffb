"""Gives every PENDING task a node, or the reason why there is none.

One key, so that everything that waits is planned together and spread evenly. Tasks
with a desired state of READY are placed too: they are prepared while they wait.
A pass costs the tasks that wait and the nodes, not the tasks that run.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from swarmlet.api import pb
from swarmlet.api.taskstate import is_occupying
from swarmlet.manager.orchestrator.tasks import is_wanted_up
from swarmlet.manager.reconcile import Edit, Key, Plan
from swarmlet.manager.scheduler.filters import Pipeline
from swarmlet.manager.scheduler.ledger import Ledger, NodeAccount
from swarmlet.manager.scheduler.spread import Branch, spread_labels
from swarmlet.store.store import Transaction
from swarmlet.store.tables import Tables
from swarmlet.store.watch import Change

KEY = "schedule"
TASKS_PER_PASS_MAX = 250
"""Bounds the time of one pass; the rest follows in the next."""
ASSIGNED_MESSAGE = "scheduler assigned task to node"
CONFIRMED_MESSAGE = "scheduler confirmed task can run on preassigned node"


class Scheduler:
    """Controller that places tasks."""

    name = "scheduler"

    def __init__(self) -> None:
        self._ledger = Ledger()

    def keys(self, change: Change) -> Iterable[Key]:
        value = change.current
        if isinstance(value, pb.Node):
            return [KEY]
        if isinstance(value, pb.Task):
            is_waiting = change.new is not None and value.status.state == pb.TASK_STATE_PENDING
            return [KEY] if is_waiting or _left_its_node(change) else []
        return []

    def all_keys(self, view: Tables) -> Iterable[Key]:
        return [KEY]

    def plan(self, view: Tables, key: Key, now: datetime) -> Plan:
        plan = Plan()
        waiting = [t for t in view.tasks.find("state", pb.TASK_STATE_PENDING) if is_wanted_up(t)]
        if not waiting:
            return plan
        accounts = self._ledger.accounts(view)
        booked: list[tuple[NodeAccount, pb.Task]] = []
        for group in _alike(waiting):
            _place(group[: TASKS_PER_PASS_MAX - len(plan.edits)], accounts, booked, plan, now)
            if len(plan.edits) >= TASKS_PER_PASS_MAX:
                plan.look_again = now
                break
        for account, task in booked:
            account.remove(task)
        return plan


def _left_its_node(change: Change) -> bool:
    """Whether the task no longer uses what it used."""
    old, new = change.old, change.new
    if not isinstance(old, pb.Task) or not is_occupying(old):
        return False
    return not isinstance(new, pb.Task) or not is_occupying(new) or old.desired_state != new.desired_state


def _alike(waiting: list[pb.Task]) -> list[list[pb.Task]]:
    """Tasks that every filter judges alike, together; those with a node of their own come first."""
    groups: dict[object, list[pb.Task]] = {}
    for task in waiting:
        key = (not task.node_id, task.service_id, task.spec_version.index, task.node_id)
        groups.setdefault(key, []).append(task)
    in_order = sorted(groups.items(), key=lambda item: str(item[0]))
    return [sorted(tasks, key=lambda t: (t.slot, t.id)) for _, tasks in in_order]


def _place(
    group: list[pb.Task],
    accounts: dict[str, NodeAccount],
    booked: list[tuple[NodeAccount, pb.Task]],
    plan: Plan,
    now: datetime,
) -> None:
    preassigned = group[0].node_id
    candidates = [accounts[preassigned]] if preassigned in accounts else list(accounts.values())
    if preassigned and preassigned not in accounts:
        # The orchestrator stops it when it learns that the node is gone.
        return
    pipeline = Pipeline(group[0])
    tree = Branch(group[0], candidates, spread_labels(group[0]), pipeline, now)
    for task in group:
        account = tree.take(task, pipeline)
        if account is not None:
            booked.append((account, task))
            message = CONFIRMED_MESSAGE if preassigned else ASSIGNED_MESSAGE
            plan.edits.append(_assign(task, account.node, message, now))
        else:
            error = pipeline.explain()
            if task.status.err != error:
                plan.edits.append(_explain(task, error, now))


def _assign(planned: pb.Task, node: pb.Node, message: str, now: datetime) -> Edit:
    def edit(tx: Transaction) -> None:
        task = tx.get(pb.Task, planned.id)
        if task is None or task.status.state != pb.TASK_STATE_PENDING or not is_wanted_up(task):
            return
        present = tx.get(pb.Node, node.id)
        if present is None or present.version != node.version:
            # What was true of it when it was chosen may no longer be; its change brings the key back.
            return
        changed = pb.Task()
        changed.CopyFrom(task)
        changed.node_id = node.id
        changed.status.state = pb.TASK_STATE_ASSIGNED
        changed.status.message = message
        changed.status.ClearField("err")
        changed.status.timestamp.FromDatetime(now)
        tx.update(changed)

    return edit


def _explain(planned: pb.Task, error: str, now: datetime) -> Edit:
    def edit(tx: Transaction) -> None:
        task = tx.get(pb.Task, planned.id)
        if task is None or task.status.state != pb.TASK_STATE_PENDING or task.status.err == error:
            return
        changed = pb.Task()
        changed.CopyFrom(task)
        changed.status.err = error
        changed.status.timestamp.FromDatetime(now)
        tx.update(changed)

    return edit
