"""The order of task states and what follows from it.

States are numbered in the order in which a task passes them (SwarmKit's
numbering), so "at least running" is a comparison.
"""

from __future__ import annotations

from swarmlet.api import pb
from swarmlet.api.pb import TaskState


def is_terminal(state: TaskState.ValueType) -> bool:
    """Whether a task observed in `state` has ended for good."""
    return state > pb.TASK_STATE_RUNNING


def may_move(old: TaskState.ValueType, new: TaskState.ValueType) -> bool:
    """Whether an observed state may follow another: never backwards, and nothing follows an end."""
    return new >= old and not (is_terminal(old) and new != old)


def is_wanted(task: pb.Task) -> bool:
    """Whether the cluster wants the task to run, now or once its turn comes."""
    return task.desired_state <= pb.TASK_STATE_RUNNING and not is_terminal(task.status.state)


def is_running(task: pb.Task) -> bool:
    return task.status.state == pb.TASK_STATE_RUNNING and task.desired_state == pb.TASK_STATE_RUNNING


def is_occupying(task: pb.Task) -> bool:
    """Whether the task uses, or may still use, resources of the node it was given to."""
    return bool(task.node_id) and pb.TASK_STATE_ASSIGNED <= task.status.state <= pb.TASK_STATE_RUNNING
