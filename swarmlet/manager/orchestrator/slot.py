"""One slot of a service: which of its tasks counts, what replaces one that ended or has
to leave its node, when a task that was prepared ahead may run.

A slot is a number (replicated) or a node (global). It has at most one task that is
wanted up, or two while an update starts the new before it stops the old. Called by
the service planners; says nothing about how many slots there are, nor about the order
of an update (`rollout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from swarmlet.api import pb
from swarmlet.api.taskstate import is_occupying, is_terminal
from swarmlet.manager.orchestrator import restart
from swarmlet.manager.orchestrator.tasks import (
    Place,
    Revision,
    age_order,
    is_still_stopping,
    is_wanted_up,
    let_run,
    mode_of,
    new_task,
    place_of,
    slot_is_free,
    stop,
    stopped,
    time_of,
)
from swarmlet.manager.reconcile import Edit, Plan
from swarmlet.store.store import Transaction
from swarmlet.store.tables import Tables, slot_key

STOP_WAIT_MAX = timedelta(minutes=1)
"""How long beyond its grace period a predecessor is waited for (SwarmKit's TaskTimeout)."""
STOP_GRACE_DEFAULT = timedelta(seconds=10)

UPDATING = (pb.UPDATE_STATE_UPDATING, pb.UPDATE_STATE_ROLLBACK_STARTED)
PAUSED = (pb.UPDATE_STATE_PAUSED, pb.UPDATE_STATE_ROLLBACK_PAUSED)


class Situation:
    """What every slot of one service is judged by, in one plan."""

    def __init__(self, view: Tables, service: pb.Service, now: datetime) -> None:
        self.view = view
        self.service = service
        self.now = now
        self.revision = Revision(service, view.nodes.get)
        self.is_global = mode_of(service) == "global"
        self.is_updating = service.update_status.state in UPDATING
        self.is_paused = service.update_status.state in PAUSED
        self.update_config = _update_config(service)
        self._places: dict[str, Place] = {}

    def place(self, task: pb.Task) -> Place:
        if task.spec.placement.constraints:
            return place_of(task, self.view.nodes.get)
        place = self._places.get(task.node_id)
        if place is None:
            place = self._places[task.node_id] = place_of(task, self.view.nodes.get)
        return place

    def is_healthy(self, task: pb.Task) -> bool:
        """Whether the task runs, or can be expected to."""
        return not is_terminal(task.status.state) and self.place(task) is Place.FINE

    @property
    def starts_first(self) -> bool:
        return self.update_config.order == pb.UPDATE_ORDER_START_FIRST


def _update_config(service: pb.Service) -> pb.UpdateConfig:
    """What the update in progress goes by; without one, Docker's default of one slot at a time."""
    spec = service.spec
    if service.update_status.state == pb.UPDATE_STATE_ROLLBACK_STARTED:
        if spec.HasField("rollback_config"):
            return spec.rollback_config
    elif spec.HasField("update_config"):
        return spec.update_config
    return pb.UpdateConfig(parallelism=1)


@dataclass
class SlotTasks:
    """A slot's tasks, sorted once into what they mean."""

    tasks: list[pb.Task]
    """From the oldest to the newest."""
    current: list[pb.Task] = field(default_factory=list)
    """Wanted up and as the service says."""
    outdated: list[pb.Task] = field(default_factory=list)
    """Wanted up, but of another revision."""

    @property
    def newest(self) -> pb.Task:
        return self.tasks[-1]

    @property
    def number(self) -> int:
        return self.newest.slot


def sort_slot(s: Situation, tasks: Sequence[pb.Task]) -> SlotTasks:
    """`tasks` are all of one slot, at least one. The best of each kind comes first."""
    slot = SlotTasks(sorted(tasks, key=age_order))
    for task in slot.tasks:
        if is_wanted_up(task):
            (slot.outdated if s.revision.is_outdated(task) else slot.current).append(task)
    for kind in (slot.current, slot.outdated):
        if len(kind) > 1:
            kind.sort(key=lambda t: _merit(s, t), reverse=True)
    return slot


def _merit(s: Situation, task: pb.Task) -> tuple[bool, bool, bool, tuple[int, int, int, str]]:
    return (
        s.is_healthy(task),
        task.status.state == pb.TASK_STATE_RUNNING,
        task.desired_state == pb.TASK_STATE_RUNNING,
        age_order(task),
    )


def is_given_up(slot: SlotTasks) -> bool:
    """Whether the slot is empty because its policy wants no further task in it."""
    return (
        not slot.current
        and not slot.outdated
        and slot.newest.desired_state == pb.TASK_STATE_SHUTDOWN
        and not restart.may_follow(slot.newest, slot.tasks)
    )


def plan_slot(s: Situation, slot: SlotTasks, plan: Plan) -> None:
    """Adds to `plan` what the slot needs, whatever happens in others."""
    wanted = slot.current or slot.outdated
    if not wanted:
        return
    principal = wanted[0]
    plan.edits.extend(
        stop(task.id, s.now)
        for task in [*slot.current, *slot.outdated]
        if task is not principal and not _may_stay_beside(s, task, principal, slot)
    )
    if not s.is_healthy(principal):
        _follow(s, principal, slot, plan)
    elif principal.desired_state == pb.TASK_STATE_READY:
        _let_run_when_due(s, principal, slot, plan)


def _may_stay_beside(s: Situation, task: pb.Task, principal: pb.Task, slot: SlotTasks) -> bool:
    """Whether `task` goes on serving until the new task of its slot runs."""
    return (
        s.starts_first
        and principal in slot.current
        and bool(slot.outdated)
        and task is slot.outdated[0]
        and s.is_healthy(task)
        and not (principal.status.state == pb.TASK_STATE_RUNNING and s.is_healthy(principal))
    )


def _let_run_when_due(s: Situation, task: pb.Task, slot: SlotTasks, plan: Plan) -> None:
    if not restart.start_is_due(task, s.now):
        look_again_at(plan, time_of(task.start_after))
        return
    until = max((t for t in (waits_until(s, task, old) for old in slot.tasks) if t is not None), default=None)
    if until is None or until <= s.now:
        plan.edits.append(let_run(task.id))
    else:
        look_again_at(plan, until)


def waits_until(s: Situation, task: pb.Task, predecessor: pb.Task) -> datetime | None:
    """How long, at most, `task` waits for a predecessor that is still being stopped; None: not at all."""
    if predecessor.id == task.id or not is_still_stopping(predecessor, s.view.nodes.get):
        return None
    container = predecessor.spec.container_spec
    has_grace = container.HasField("stop_grace_period_ns")
    grace = restart.nanoseconds(container.stop_grace_period_ns) if has_grace else STOP_GRACE_DEFAULT
    return time_of(task.created_at) + grace + STOP_WAIT_MAX


def _follow(s: Situation, ended: pb.Task, slot: SlotTasks, plan: Plan) -> None:
    """The principal task ended, or cannot stay where it is: another one, or none."""
    place = s.place(ended)
    if s.is_global and place is not Place.FINE:
        plan.edits.append(stop(ended.id, s.now))
        return
    is_outdated = bool(slot.outdated) and ended is slot.outdated[0]
    if is_outdated and s.is_updating:
        # The rollout replaces it by the new revision at once; nothing is gained by a delay.
        return
    lost_its_node = place is not Place.FINE or ended.status.state == pb.TASK_STATE_ORPHANED
    is_due = restart.start_is_due(ended, s.now)
    if not is_due and not lost_its_node:
        # It failed while it was being prepared: its own delay still keeps the slot from spinning.
        look_again_at(plan, time_of(ended.start_after))
        return
    if not restart.may_follow(ended, slot.tasks):
        plan.edits.append(stop(ended.id, s.now))
        return
    delay = timedelta(0) if lost_its_node else restart.delay_of(ended)
    start_after = time_of(ended.start_after) if not is_due else s.now + delay
    plan.edits.append(
        replace(
            s,
            ended,
            start_after=start_after if start_after > s.now else None,
            keep_revision=is_outdated and s.is_paused,
        )
    )


def replace(
    s: Situation,
    old: pb.Task,
    *,
    start_after: datetime | None = None,
    keep_revision: bool = False,
    stop_old: bool = True,
) -> Edit:
    """A new task in the slot of `old`; READY first when there is something to wait for.

    With `keep_revision` it is what the old one was, because the service's present
    revision is not trusted at the moment.
    """
    now = s.now

    def edit(tx: Transaction) -> None:
        present = tx.get(pb.Task, old.id)
        service = tx.get(pb.Service, old.service_id)
        if service is None or present is None:
            return
        if is_wanted_up(old):
            if not is_wanted_up(present):
                return
            if stop_old:
                tx.update(stopped(present, pb.TASK_STATE_SHUTDOWN, now))
        elif not slot_is_free(tx, old.service_id, old.slot, old.node_id):
            return
        beside = "" if stop_old else old.id
        has_to_wait = start_after is not None or _is_occupied(tx, old, beside=beside)
        tx.create(
            new_task(
                tx,
                service,
                slot=old.slot,
                node_id=old.node_id if s.is_global else "",
                desired=pb.TASK_STATE_READY if has_to_wait else pb.TASK_STATE_RUNNING,
                start_after=start_after,
                like=present if keep_revision else None,
                now=now,
            )
        )

    return edit


def _is_occupied(tx: Transaction, old: pb.Task, *, beside: str) -> bool:
    """Whether a task of the slot may still run somewhere, other than the one `beside` which a new one may."""
    slot = tx.view.tasks.find("slot", slot_key(old))
    tasks = (tx.get(pb.Task, task.id) for task in slot if task.id != beside)
    return any(
        task is not None
        and is_occupying(task)
        and place_of(task, lambda node_id: tx.get(pb.Node, node_id)) is not Place.LOST
        for task in tasks
    )


def fill(s: Situation, number: int, node_id: str, tasks: Sequence[pb.Task]) -> Edit:
    """The first task of a slot that has none; `tasks` are what earlier ones left there."""
    now, service_id = s.now, s.service.id
    has_to_wait = any(is_still_stopping(task, s.view.nodes.get) for task in tasks)

    def edit(tx: Transaction) -> None:
        service = tx.get(pb.Service, service_id)
        if service is None or not slot_is_free(tx, service_id, number, node_id):
            return
        desired = pb.TASK_STATE_READY if has_to_wait else pb.TASK_STATE_RUNNING
        tx.create(new_task(tx, service, slot=number, node_id=node_id, desired=desired, now=now))

    return edit


def look_again_at(plan: Plan, at: datetime) -> None:
    plan.look_again = at if plan.look_again is None else min(plan.look_again, at)
