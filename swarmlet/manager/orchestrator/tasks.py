"""What orchestrators know of single tasks: where they are, what revision they are of,
when things happened to them; and the edits with which they change them.

Pure functions of the view, and edits that check again what they rely on.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import Enum, auto

from google.protobuf.timestamp_pb2 import Timestamp

from swarmlet.api import pb
from swarmlet.api.constraints import node_matches
from swarmlet.api.taskstate import is_occupying, is_terminal
from swarmlet.manager.reconcile import Edit
from swarmlet.store.store import Transaction
from swarmlet.store.tables import slot_key

OWN_ENDS = (pb.TASK_STATE_COMPLETE, pb.TASK_STATE_FAILED, pb.TASK_STATE_REJECTED)
"""How a task ends by itself, as opposed to being told to or losing its node."""

CLOCK_SLACK = timedelta(minutes=1)
"""How far the clocks of two leaders, or of one before and after a correction, may be apart to be believed."""

NodeLookup = Callable[[str], pb.Node | None]


class Place(Enum):
    """Where a task stands with its node."""

    FINE = auto()
    LEAVING = auto()
    """The node is drained, or no longer satisfies the task's constraints: it still stops tasks itself."""
    LOST = auto()
    """The node is down or removed: nothing will be heard from it soon."""


def place_of(task: pb.Task, node_of: NodeLookup) -> Place:
    if not task.node_id:
        return Place.FINE
    node = node_of(task.node_id)
    if node is None or node.status.state == pb.NODE_STATE_DOWN:
        return Place.LOST
    if node.spec.availability == pb.NODE_AVAILABILITY_DRAIN:
        return Place.LEAVING
    # Tasks on a paused node are left alone, whatever its labels say now.
    constraints = task.spec.placement.constraints
    if constraints and node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE:
        return Place.FINE if node_matches(constraints, node) else Place.LEAVING
    return Place.FINE


def is_wanted_up(task: pb.Task) -> bool:
    """Whether the task is meant to run, now or later, however it fares."""
    return task.desired_state <= pb.TASK_STATE_RUNNING


def ended_by_itself(task: pb.Task) -> bool:
    return task.status.state in OWN_ENDS


def is_still_stopping(task: pb.Task, node_of: NodeLookup) -> bool:
    """Whether a task that is no longer wanted may still run somewhere."""
    return not is_wanted_up(task) and is_occupying(task) and place_of(task, node_of) is not Place.LOST


def mode_of(service: pb.Service) -> str:
    """ "replicated", "global", "replicated_job" or "global_job"."""
    return service.spec.mode.WhichOneof("mode") or "replicated"


# ---- time


def time_of(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def is_over(end: datetime, duration: timedelta, now: datetime) -> bool:
    """Whether a wait of `duration` that ends at `end` is over.

    One that would last longer from now on than it lasts at all was begun by a clock
    that has been set back since, or by a leader whose clock was ahead.
    """
    remaining = end - now
    return remaining <= timedelta(0) or remaining > duration + CLOCK_SLACK


def age_order(task: pb.Task) -> tuple[int, int, int, str]:
    """Sorts the tasks of a slot from the oldest to the newest.

    By revision first: that is an index of the log, while a clock may be set back or
    differ from the clock of the leader before.
    """
    return (task.spec_version.index, task.created_at.seconds, task.created_at.nanos, task.id)


def ended_at(task: pb.Task) -> datetime:
    """When the task ended: the agent's clock, kept between two times of the managers'."""
    at, earliest, latest = (time_of(s) for s in (task.status.timestamp, task.created_at, task.updated_at))
    return max(earliest, min(at, latest)) if task.HasField("updated_at") else max(earliest, at)


def reached_running_at(task: pb.Task) -> datetime | None:
    """When the task first ran, or ended without having run; None while neither is so."""
    if task.status.state < pb.TASK_STATE_RUNNING:
        return None
    return time_of(task.running_since) if task.HasField("running_since") else ended_at(task)


# ---- revisions


class Revision:
    """What the tasks of a service should look like now; made per plan, remembers comparisons."""

    def __init__(self, service: pb.Service, node_of: NodeLookup) -> None:
        self._service = service
        self._node_of = node_of
        self._ports = _ports_that_matter(service.spec.endpoint_spec)
        self._verdicts: dict[bytes, tuple[bool, bool]] = {}

    def is_outdated(self, task: pb.Task) -> bool:
        """Whether the task has to be replaced to be what the service says.

        Not so when only the placement changed and the task's node suits the new one,
        or when only the published side of an ingress port changed: that is the
        business of the nodes that publish it.
        """
        template = self._service.spec.task_template
        if task.spec != template:
            differs, only_in_placement = self._compare(task.spec, template)
            if differs and not (only_in_placement and self._suits(task)):
                return True
        return _ports_that_matter(task.endpoint.spec) != self._ports

    def _suits(self, task: pb.Task) -> bool:
        node = self._node_of(task.node_id) if task.node_id else None
        return node is not None and node_matches(self._service.spec.task_template.placement.constraints, node)

    def _compare(self, spec: pb.TaskSpec, template: pb.TaskSpec) -> tuple[bool, bool]:
        """(they differ, and in the placement alone); credentials for pulling are not a difference."""
        key = spec.SerializeToString(deterministic=True)
        verdict = self._verdicts.get(key)
        if verdict is None:
            mine, wanted = pb.TaskSpec(), pb.TaskSpec()
            mine.CopyFrom(spec)
            wanted.CopyFrom(template)
            for copy in (mine, wanted):
                copy.container_spec.ClearField("pull_auth")
            differs = mine != wanted
            for copy in (mine, wanted):
                copy.ClearField("placement")
            verdict = self._verdicts[key] = (differs, mine == wanted)
        return verdict


def _ports_that_matter(spec: pb.EndpointSpec) -> frozenset[tuple[int, int, int, int]]:
    return frozenset(
        (p.protocol, p.publish_mode, p.target_port, p.published_port if p.publish_mode else 0)
        for p in spec.ports
    )


# ---- making and changing


def new_task(
    tx: Transaction,
    service: pb.Service,
    *,
    slot: int,
    node_id: str = "",
    desired: pb.TaskState.ValueType = pb.TASK_STATE_RUNNING,
    start_after: datetime | None = None,
    like: pb.Task | None = None,
    now: datetime,
) -> pb.Task:
    """A task of the service as it is now, or of the revision of the task `like`."""
    task = pb.Task(
        id=tx.new_id(),
        name=f"{service.spec.name}.{slot or node_id}",
        service_id=service.id,
        service_name=service.spec.name,
        service_labels=service.spec.labels,
        slot=slot,
        node_id=node_id,
        desired_state=desired,
    )
    task.status.state = pb.TASK_STATE_NEW
    task.status.message = "created"
    task.status.timestamp.FromDatetime(now)
    if like is not None:
        task.spec.CopyFrom(like.spec)
        task.spec_version.CopyFrom(like.spec_version)
        task.endpoint.spec.CopyFrom(like.endpoint.spec)
    else:
        task.spec.CopyFrom(service.spec.task_template)
        task.spec_version.CopyFrom(service.spec_version)
        task.endpoint.spec.CopyFrom(service.spec.endpoint_spec)
    if start_after is not None:
        task.start_after.FromDatetime(start_after)
    return task


def stopped(task: pb.Task, desired: pb.TaskState.ValueType, now: datetime) -> pb.Task:
    """A copy that is no longer wanted. One that no node has been given yet is over at once."""
    changed = pb.Task()
    changed.CopyFrom(task)
    changed.desired_state = desired
    if task.status.state < pb.TASK_STATE_ASSIGNED:
        changed.status.state = pb.TASK_STATE_SHUTDOWN
        changed.status.message = "shut down before it was given to a node"
        changed.status.ClearField("err")
        changed.status.timestamp.FromDatetime(now)
    return changed


def stop(task_id: str, now: datetime, desired: pb.TaskState.ValueType = pb.TASK_STATE_SHUTDOWN) -> Edit:
    """Raises the desired state of a task; it is never lowered again."""

    def edit(tx: Transaction) -> None:
        task = tx.get(pb.Task, task_id)
        if task is not None and task.desired_state < desired:
            tx.update(stopped(task, desired, now))

    return edit


def let_run(task_id: str) -> Edit:
    """Moves a task that was prepared ahead from READY to RUNNING."""

    def edit(tx: Transaction) -> None:
        task = tx.get(pb.Task, task_id)
        if task is None or task.desired_state != pb.TASK_STATE_READY or is_terminal(task.status.state):
            return
        changed = pb.Task()
        changed.CopyFrom(task)
        changed.desired_state = pb.TASK_STATE_RUNNING
        tx.update(changed)

    return edit


def slot_is_free(tx: Transaction, service_id: str, slot: int, node_id: str) -> bool:
    """Whether no task of the slot is wanted up, nor about to be made by this transaction."""
    key = slot_key(pb.Task(service_id=service_id, slot=slot, node_id=node_id))
    if any(is_wanted_up(task) for task in tx.view.tasks.find("slot", key)):
        return False
    # Only a node's slot can be filled by two keys of one round: its service's and the node's.
    return bool(slot) or not any(
        change.kind == pb.CHANGE_KIND_CREATE and slot_key(change.object.task) == key for change in tx.changes
    )
