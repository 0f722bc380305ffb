"""Whether and when a task that ended is followed by another in its slot.

Everything is derived from the slot's tasks in the store, so that a new leader counts
on where the old one stopped. Rules are SwarmKit's (manager/orchestrator/restart),
but for two: losing its node is no attempt of the task's, and is followed without
delay.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from swarmlet.api import pb
from swarmlet.manager.orchestrator.tasks import age_order, ended_at, ended_by_itself, is_over, time_of

DELAY_DEFAULT = timedelta(seconds=5)


def delay_of(task: pb.Task) -> timedelta:
    policy = task.spec.restart_policy
    return nanoseconds(policy.delay_ns) if policy.HasField("delay_ns") else DELAY_DEFAULT


def nanoseconds(count: int) -> timedelta:
    return timedelta(microseconds=count / 1000)


def start_is_due(task: pb.Task, now: datetime) -> bool:
    """Whether the delay before the task's start is over."""
    return not task.HasField("start_after") or is_over(time_of(task.start_after), delay_of(task), now)


def may_follow(ended: pb.Task, slot: Sequence[pb.Task]) -> bool:
    """Whether the policy allows another task after `ended`; `slot` are all tasks of its slot.

    The answer for the same tasks is always the same, whenever it is asked.
    """
    policy = ended.spec.restart_policy
    if policy.condition == pb.RESTART_CONDITION_NONE:
        return False
    if not ended_by_itself(ended):
        return True
    if policy.condition == pb.RESTART_CONDITION_ON_FAILURE and ended.status.state == pb.TASK_STATE_COMPLETE:
        return False
    return not policy.max_attempts or _attempts_before(ended, slot) < policy.max_attempts


def _attempts_before(ended: pb.Task, slot: Sequence[pb.Task]) -> int:
    """How often a task of this revision has been started again in the slot, within the policy's window."""
    revision = sorted((t for t in slot if t.spec_version == ended.spec_version), key=age_order)
    window_ns = ended.spec.restart_policy.window_ns
    since = ended_at(ended) - nanoseconds(window_ns) if window_ns else None
    return sum(
        1
        for before, task in pairwise(revision)
        if ended_by_itself(before)
        and age_order(task) <= age_order(ended)
        and (since is None or time_of(task.created_at) > since)
    )
