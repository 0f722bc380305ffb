from __future__ import annotations

import itertools

import pytest

from swarmlet.api import pb
from swarmlet.api.taskstate import is_occupying, is_running, is_terminal, is_wanted, may_move

STATES = pb.TaskState.values()
ENDS = {
    pb.TASK_STATE_COMPLETE,
    pb.TASK_STATE_SHUTDOWN,
    pb.TASK_STATE_FAILED,
    pb.TASK_STATE_REJECTED,
    pb.TASK_STATE_REMOVE,
    pb.TASK_STATE_ORPHANED,
}


def a_task(
    state: pb.TaskState.ValueType, desired: pb.TaskState.ValueType = pb.TASK_STATE_RUNNING, node_id: str = "n"
) -> pb.Task:
    return pb.Task(status=pb.TaskStatus(state=state), desired_state=desired, node_id=node_id)


def test_states_after_running_are_ends() -> None:
    assert {state for state in STATES if is_terminal(state)} == ENDS


def test_observed_states_only_move_forward_and_an_end_is_final() -> None:
    for old, new in itertools.product(STATES, STATES):
        assert may_move(old, new) == (new == old or (new > old and old not in ENDS))


@pytest.mark.parametrize(
    ("state", "desired", "wanted"),
    [
        (pb.TASK_STATE_NEW, pb.TASK_STATE_RUNNING, True),
        (pb.TASK_STATE_READY, pb.TASK_STATE_READY, True),
        (pb.TASK_STATE_RUNNING, pb.TASK_STATE_SHUTDOWN, False),
        (pb.TASK_STATE_RUNNING, pb.TASK_STATE_REMOVE, False),
        (pb.TASK_STATE_FAILED, pb.TASK_STATE_RUNNING, False),
    ],
)
def test_a_task_is_wanted_until_it_ends_or_shall_end(
    state: pb.TaskState.ValueType, desired: pb.TaskState.ValueType, wanted: bool
) -> None:
    assert is_wanted(a_task(state, desired)) == wanted


def test_a_task_runs_when_it_does_and_shall() -> None:
    assert is_running(a_task(pb.TASK_STATE_RUNNING))
    assert not is_running(a_task(pb.TASK_STATE_STARTING))
    assert not is_running(a_task(pb.TASK_STATE_RUNNING, pb.TASK_STATE_SHUTDOWN))


def test_a_task_occupies_its_node_from_assignment_to_its_end() -> None:
    occupying = {state for state in STATES if is_occupying(a_task(state, pb.TASK_STATE_SHUTDOWN))}

    assert min(occupying) == pb.TASK_STATE_ASSIGNED
    assert max(occupying) == pb.TASK_STATE_RUNNING
    assert not is_occupying(a_task(pb.TASK_STATE_ASSIGNED, node_id=""))
