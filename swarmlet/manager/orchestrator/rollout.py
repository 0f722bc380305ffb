"""Updates: which slots get the new revision, in what order, and when to stop doing so.

Called by the service planners with all slots of a service. Nothing is kept between two
calls: who is being replaced, since when, and what failed is read from the tasks and
from the service's update status, so that a new leader continues where the old one
stopped. Behaviour and messages are SwarmKit's (manager/orchestrator/update), but for
slots in which nothing serves: those are replaced at once, before all others, and the
others wait for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from swarmlet.api import pb
from swarmlet.manager.orchestrator.restart import nanoseconds
from swarmlet.manager.orchestrator.slot import Situation, SlotTasks, look_again_at, replace
from swarmlet.manager.orchestrator.tasks import (
    age_order,
    ended_at,
    ended_by_itself,
    is_over,
    reached_running_at,
    time_of,
)
from swarmlet.manager.reconcile import Edit, Plan
from swarmlet.store.store import Transaction

MONITOR_DEFAULT = timedelta(seconds=5)


class Standing(Enum):
    """How far a slot is with the update."""

    OUTDATED = auto()
    """Serves, by a task of another revision."""
    IDLE = auto()
    """Of another revision, and nothing in it serves."""
    CHANGING = auto()
    """Its new task has not run yet."""
    DONE = auto()


@dataclass
class _Slot:
    slot: SlotTasks
    standing: Standing
    old: pb.Task
    """What would be replaced."""
    is_replaced: bool = False
    """Whether it had a task of another revision before."""
    reached_at: datetime | None = None
    failed: pb.Task | None = None
    """The first task of this update in it that did not live up to the monitor."""


def plan_rollout(s: Situation, slots: Iterable[SlotTasks], plan: Plan) -> None:
    """Adds to `plan` the next steps of the service's update, and its beginning and end."""
    if s.is_paused:
        return
    if not s.is_updating:
        # Comparing is enough to see that nothing is to be done, as it is nearly always.
        suspects = (slot for slot in slots if slot.outdated or not slot.current)
        if any(_judge(s, slot).standing in (Standing.OUTDATED, Standing.IDLE) for slot in suspects):
            plan.edits.append(_set_status(s, pb.UPDATE_STATE_UPDATING, "update in progress"))
        return
    judged = [_judge(s, slot) for slot in slots]
    if _stop_on_failure(s, judged, plan):
        return
    if any(slot.standing is not Standing.DONE for slot in judged):
        _go_on(s, judged, plan)
    else:
        _finish(s, judged, plan)


# ---- judging


def _judge(s: Situation, slot: SlotTasks) -> _Slot:
    is_outdated = [s.revision.is_outdated(task) for task in slot.tasks]
    # What came after the last task of another revision; earlier ones may be of an update long ago.
    since = max((i + 1 for i, outdated in enumerate(is_outdated) if outdated), default=0)
    recent = slot.tasks[since:]
    # What serves already may have been there before: an update was taken back before it came so far.
    serving = [*recent, *slot.current[:1]]
    reached = [at for at in map(reached_running_at, serving) if at is not None]
    failed = next((t for t in recent if _is_of_update(s, t) and _failed_in_monitor(s, t)), None)
    if slot.current:
        is_changing = since > 0 and not reached
        standing = Standing.CHANGING if is_changing else Standing.DONE
        return _Slot(slot, standing, slot.current[0], since > 0, min(reached, default=None), failed)
    if recent and ended_by_itself(slot.newest) and _is_of_update(s, slot.newest):
        # Tried, failed and given up: the old task, if there still is one, goes on.
        return _Slot(slot, Standing.DONE, slot.newest, True, ended_at(slot.newest), failed)
    if not slot.outdated:
        return _Slot(slot, Standing.DONE if recent else Standing.IDLE, slot.newest)
    old = slot.outdated[0]
    serves = s.is_healthy(old) and old.status.state == pb.TASK_STATE_RUNNING
    return _Slot(slot, Standing.OUTDATED if serves else Standing.IDLE, old)


def _is_of_update(s: Situation, task: pb.Task) -> bool:
    return task.spec_version == s.service.spec_version


def _failed_in_monitor(s: Situation, task: pb.Task) -> bool:
    if not ended_by_itself(task) or ended_at(task) < time_of(s.service.update_status.started_at):
        # What failed before a paused update was resumed is known to who resumed it.
        return False
    if not task.HasField("running_since"):
        return True
    return ended_at(task) - time_of(task.running_since) <= _monitor(s)


def _monitor(s: Situation) -> timedelta:
    config = s.update_config
    return nanoseconds(config.monitor_ns) if config.HasField("monitor_ns") else MONITOR_DEFAULT


# ---- steps


def _go_on(s: Situation, judged: list[_Slot], plan: Plan) -> None:
    config = s.update_config
    delay = nanoseconds(config.delay_ns)
    busy = sum(slot.standing is Standing.CHANGING for slot in judged)
    for slot in judged:
        if slot.standing is Standing.IDLE:
            busy += 1
            plan.edits.append(replace(s, slot.old))
        elif slot.is_replaced and slot.reached_at and not is_over(slot.reached_at + delay, delay, s.now):
            busy += 1
            look_again_at(plan, slot.reached_at + delay)
    limit = config.parallelism or len(judged)
    waiting = (slot for slot in judged if slot.standing is Standing.OUTDATED)
    for slot, _ in zip(waiting, range(limit - busy), strict=False):
        plan.edits.append(replace(s, slot.old, stop_old=not s.starts_first))


def _finish(s: Situation, judged: list[_Slot], plan: Plan) -> None:
    done_at = max((slot.reached_at for slot in judged if slot.is_replaced and slot.reached_at), default=None)
    monitor = _monitor(s)
    if done_at is not None and not is_over(done_at + monitor, monitor, s.now):
        look_again_at(plan, done_at + monitor)
    elif s.service.update_status.state == pb.UPDATE_STATE_ROLLBACK_STARTED:
        plan.edits.append(_set_status(s, pb.UPDATE_STATE_ROLLBACK_COMPLETED, "rollback completed"))
    else:
        plan.edits.append(_set_status(s, pb.UPDATE_STATE_COMPLETED, "update completed"))


def _stop_on_failure(s: Situation, judged: list[_Slot], plan: Plan) -> bool:
    """Whether too much failed for the update to go on."""
    config = s.update_config
    if config.failure_action == pb.FAILURE_ACTION_CONTINUE:
        return False
    failures = [slot.failed for slot in judged if slot.failed is not None]
    involved = sum(slot.is_replaced or slot.standing is not Standing.DONE for slot in judged)
    if not failures or len(failures) / max(involved, 1) <= config.max_failure_ratio:
        return False
    reason = f"due to failure or early termination of task {max(failures, key=age_order).id}"
    if s.service.update_status.state == pb.UPDATE_STATE_ROLLBACK_STARTED:
        plan.edits.append(_set_status(s, pb.UPDATE_STATE_ROLLBACK_PAUSED, f"rollback paused {reason}"))
    elif config.failure_action == pb.FAILURE_ACTION_ROLLBACK and s.service.HasField("previous_spec"):
        plan.edits.append(_roll_back(s, f"update rolled back {reason}"))
    else:
        plan.edits.append(_set_status(s, pb.UPDATE_STATE_PAUSED, f"update paused {reason}"))
    return True


# ---- the service's own fields


def _set_status(s: Situation, state: pb.UpdateState.ValueType, message: str) -> Edit:
    planned, now = s.service, s.now

    def edit(tx: Transaction) -> None:
        service = _unchanged(tx, planned)
        if service is None:
            return
        status = service.update_status
        if state == pb.UPDATE_STATE_UPDATING:
            status.Clear()
            status.started_at.FromDatetime(now)
        elif state in (pb.UPDATE_STATE_COMPLETED, pb.UPDATE_STATE_ROLLBACK_COMPLETED):
            status.completed_at.FromDatetime(now)
        status.state = state
        status.message = message
        tx.update(service)

    return edit


def _roll_back(s: Situation, message: str) -> Edit:
    planned = s.service

    def edit(tx: Transaction) -> None:
        service = _unchanged(tx, planned)
        if service is None or not service.HasField("previous_spec"):
            return
        # A revision of its own, so that failures of the tasks that ran before it do not count.
        service.spec_version.index = max(service.version.index, service.spec_version.index + 1)
        service.spec.CopyFrom(service.previous_spec)
        service.ClearField("previous_spec")
        service.update_status.state = pb.UPDATE_STATE_ROLLBACK_STARTED
        service.update_status.message = message
        tx.update(service)

    return edit


def _unchanged(tx: Transaction, planned: pb.Service) -> pb.Service | None:
    """A copy of the service to change, unless somebody gave it another spec or status meanwhile."""
    present = tx.get(pb.Service, planned.id)
    if present is None or present.spec != planned.spec or present.update_status != planned.update_status:
        return None
    copy = pb.Service()
    copy.CopyFrom(present)
    return copy
