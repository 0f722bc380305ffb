"""A whole cluster in one object: all controllers, a store that commits locally, a clock that
jumps from event to event, and agents that do what a table of behaviours says.

No event loop: everything the controllers await is ready at once. After every commit
the invariants that hold for any cluster are checked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from swarmlet.api import pb
from swarmlet.api.constraints import node_matches
from swarmlet.api.taskstate import is_occupying, is_terminal
from swarmlet.manager.controllers import all_controllers
from swarmlet.manager.reconcile import Controller, Edit, Key
from swarmlet.store.store import Transaction
from swarmlet.store.tables import StoredObject, T, slot_key
from swarmlet.store.watch import WatchOverflow
from tests.builders import NOW, a_cluster, make_store

R = TypeVar("R")
ROUNDS_MAX = 2000


def now_or_never(coroutine: Coroutine[Any, Any, R]) -> R:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: R = stop.value
        return result
    coroutine.close()
    raise AssertionError("a planner's commit waited for something")


@dataclass(frozen=True)
class Behaviour:
    """How tasks of one image fare; seconds."""

    prepare_seconds: float = 0.2
    start_seconds: float = 0.1
    stop_seconds: float = 0.3
    lifetime_seconds: float | None = None
    ends_as: pb.TaskState.ValueType = pb.TASK_STATE_FAILED
    rejected: bool = False
    never_runs: bool = False


GOOD = Behaviour()
BEHAVIOURS = {
    "crash": Behaviour(never_runs=True),
    "missing": Behaviour(rejected=True),
    "short": Behaviour(lifetime_seconds=1.0),
    "flaky": Behaviour(lifetime_seconds=20.0),
    "done": Behaviour(lifetime_seconds=1.0, ends_as=pb.TASK_STATE_COMPLETE),
    "slow": Behaviour(prepare_seconds=8.0),
    "stubborn": Behaviour(stop_seconds=3.0),
}


def behaviour_of(task: pb.Task) -> Behaviour:
    return BEHAVIOURS.get(task.spec.container_spec.image.partition(":")[0], GOOD)


class Cluster:
    """Time stands still between calls; `run` lets it pass."""

    def __init__(self, *objects: StoredObject, seed: int | None = None) -> None:
        self.now = NOW
        self.store = make_store(a_cluster(), *objects, now=lambda: self.now)
        self._rng = None if seed is None else random.Random(seed)
        self._stack = ExitStack()
        self._agents_due: dict[str, tuple[tuple[int, int], datetime]] = {}
        self.unreachable: set[str] = set()
        self.checks: list[Callable[[Cluster], None]] = [check_invariants]
        self.commits = 0
        self.placed: set[str] = set()
        self.change_leader()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    # ---- what tests read

    @property
    def view(self) -> Any:
        return self.store.view

    def service(self, name: str = "web") -> pb.Service:
        service = self.view.services.by_name(name)
        assert isinstance(service, pb.Service)
        return service

    def tasks(self, name: str = "web") -> list[pb.Task]:
        tasks: list[pb.Task] = self.view.tasks.find("service", self.service(name).id)
        return sorted(tasks, key=lambda t: (t.slot, t.node_id, t.created_at.ToNanoseconds()))

    def wanted(self, name: str = "web") -> list[pb.Task]:
        return [t for t in self.tasks(name) if t.desired_state <= pb.TASK_STATE_RUNNING]

    def running(self, name: str = "web") -> list[pb.Task]:
        return [
            t
            for t in self.tasks(name)
            if t.status.state == pb.TASK_STATE_RUNNING and t.desired_state == pb.TASK_STATE_RUNNING
        ]

    def serving(self, name: str = "web") -> list[pb.Task]:
        """Running on a node that is up, wanted or not."""
        return [
            t for t in self.tasks(name) if t.status.state == pb.TASK_STATE_RUNNING and self._is_up(t.node_id)
        ]

    def images(self, name: str = "web") -> list[str]:
        return [t.spec.container_spec.image for t in self.running(name)]

    # ---- what tests do

    def commit(self, change: Callable[[Transaction], None]) -> None:
        now_or_never(self.store.update(change))
        self._committed()

    def add(self, value: T) -> None:
        self.commit(lambda tx: tx.create(value))

    def update_service(
        self, name: str = "web", *, image: str = "", replicas: int | None = None, **spec: Any
    ) -> None:
        """As control does it: a new revision, the old spec remembered, the update status cleared."""

        def change(tx: Transaction) -> None:
            service = pb.Service()
            service.CopyFrom(self.service(name))
            service.previous_spec.CopyFrom(service.spec)
            service.ClearField("update_status")
            service.spec.MergeFrom(pb.ServiceSpec(**spec))
            if image:
                service.spec.task_template.container_spec.image = image
            if replicas is not None:
                service.spec.mode.replicated.replicas = replicas
            service.spec_version.index = self.store.applied_index + 1
            tx.update(service)

        self.commit(change)

    def remove_service(self, name: str = "web") -> None:
        service_id = self.service(name).id
        self.commit(lambda tx: tx.delete(pb.Service, service_id))

    def set_node(
        self,
        node: pb.Node,
        *,
        state: pb.NodeState.ValueType | None = None,
        availability: pb.NodeAvailability.ValueType | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        def change(tx: Transaction) -> None:
            changed = pb.Node()
            changed.CopyFrom(self.view.nodes.get(node.id))
            if state is not None:
                changed.status.state = state
            if availability is not None:
                changed.spec.availability = availability
            if labels is not None:
                changed.spec.labels.clear()
                changed.spec.labels.update(labels)
            tx.update(changed)

        self.commit(change)

    def remove_node(self, node: pb.Node) -> None:
        self.commit(lambda tx: tx.delete(pb.Node, node.id))

    def report(self, task: pb.Task, state: pb.TaskState.ValueType) -> None:
        """A status from the task's agent, committed as the dispatcher does."""

        def change(tx: Transaction) -> None:
            changed = pb.Task()
            changed.CopyFrom(self.view.tasks.get(task.id))
            changed.status.state = state
            changed.status.timestamp.FromDatetime(self.now)
            if state == pb.TASK_STATE_RUNNING:
                changed.running_since.FromDatetime(self.now)
            tx.update(changed)

        self.commit(change)

    def change_leader(self) -> None:
        """Fresh controllers that know nothing but the store."""
        self._stack.close()
        self._watcher = self._stack.enter_context(self.store.watching())
        self._controllers = all_controllers()
        self._queues: dict[str, dict[Key, None]] = {}
        self._timers: dict[str, dict[Key, datetime]] = {}
        for controller in self._controllers:
            self._queues[controller.name] = dict.fromkeys(controller.all_keys(self.view))
            self._timers[controller.name] = {}
        self._delivered_index = self.store.applied_index

    # ---- time

    def set_clock(self, now: datetime) -> None:
        """The managers' clock jumps; what agents were doing takes as long as before."""
        jump = now - self.now
        self.now = now
        self._agents_due = {id: (what, at + jump) for id, (what, at) in self._agents_due.items()}

    def run(self, seconds: float, *, until: Callable[[], bool] | None = None) -> None:
        """Lets everything happen that happens within `seconds`, or until a condition holds."""
        end = self.now + timedelta(seconds=seconds)
        self.settle()
        while until is None or not until():
            due = min((at for at in self._due_times() if at > self.now), default=end)
            if due > end:
                break
            if due == end and not any(at <= end for at in self._due_times() if at > self.now):
                break
            self.now = due
            self.settle()
        if until is None:
            self.now = max(self.now, end)
            self.settle()
        else:
            assert until(), "it did not come to that"

    def settle(self) -> None:
        """Runs controllers and agents until nothing more happens at this time."""
        for _ in range(ROUNDS_MAX):
            self._deliver()
            self._ring_timers()
            ready = [c for c in self._controllers if self._queues[c.name]]
            if ready:
                controller = self._rng.choice(ready) if self._rng else ready[0]
                self._plan(controller)
            elif not self._run_agents():
                return
        raise AssertionError(
            "the cluster does not settle: " + str({k: list(v) for k, v in self._queues.items()})
        )

    def _due_times(self) -> list[datetime]:
        timers = [at for timers in self._timers.values() for at in timers.values()]
        return timers + [at for _, at in self._agents_due.values()]

    def _deliver(self) -> None:
        if self._delivered_index == self.store.applied_index:
            return
        self._delivered_index = self.store.applied_index
        try:
            changes = now_or_never(self._watcher.next())
        except WatchOverflow:
            raise AssertionError("too many changes for one watcher") from None
        for controller in self._controllers:
            for change in changes:
                self._queues[controller.name].update(dict.fromkeys(controller.keys(change)))

    def _ring_timers(self) -> None:
        for name, timers in self._timers.items():
            for key in [key for key, at in timers.items() if at <= self.now]:
                del timers[key]
                self._queues[name][key] = None

    def _plan(self, controller: Controller) -> None:
        queue = self._queues[controller.name]
        keys = list(queue)
        if self._rng is not None:
            self._rng.shuffle(keys)
            keys = keys[: self._rng.randint(1, len(keys))]
        edits: list[Edit] = []
        for key in keys:
            del queue[key]
            self._timers[controller.name].pop(key, None)
            plan = controller.plan(self.view, key, self.now)
            edits.extend(plan.edits)
            if plan.look_again is not None:
                self._timers[controller.name][key] = plan.look_again
        committed = now_or_never(self.store.batch(edits))
        if committed:
            self._committed()

    def _committed(self) -> None:
        self.commits += 1
        # No two commits have the same time.
        self.now += timedelta(microseconds=1)
        for check in self.checks:
            check(self)

    # ---- agents

    def _is_up(self, node_id: str) -> bool:
        return node_id not in self.unreachable and self.view.nodes.get(node_id) is not None

    def _run_agents(self) -> bool:
        """One step of every task whose time has come; whether there was any."""
        moved = False
        for task in list(self.view.tasks):
            step = self._next_step(task)
            if step is None:
                self._agents_due.pop(task.id, None)
                continue
            state, seconds = step
            known = self._agents_due.get(task.id)
            situation = (task.status.state, state)
            if known is None or known[0] != situation:
                known = self._agents_due[task.id] = (situation, self.now + timedelta(seconds=seconds))
            if known[1] <= self.now:
                del self._agents_due[task.id]
                self.report(task, state)
                moved = True
        return moved

    def _next_step(self, task: pb.Task) -> tuple[pb.TaskState.ValueType, float] | None:
        state, desired = task.status.state, task.desired_state
        if not is_occupying(task) or not self._is_up(task.node_id):
            return None
        behaviour = behaviour_of(task)
        if desired > pb.TASK_STATE_RUNNING:
            seconds = behaviour.stop_seconds if state >= pb.TASK_STATE_STARTING else 0.0
            return pb.TASK_STATE_SHUTDOWN, seconds
        if state < pb.TASK_STATE_PREPARING:
            return pb.TASK_STATE_PREPARING, 0.0
        if state == pb.TASK_STATE_PREPARING:
            after = pb.TASK_STATE_REJECTED if behaviour.rejected else pb.TASK_STATE_READY
            return after, behaviour.prepare_seconds
        if state == pb.TASK_STATE_READY:
            return (pb.TASK_STATE_STARTING, 0.0) if desired == pb.TASK_STATE_RUNNING else None
        if state == pb.TASK_STATE_STARTING:
            after = behaviour.ends_as if behaviour.never_runs else pb.TASK_STATE_RUNNING
            return after, behaviour.start_seconds
        if behaviour.lifetime_seconds is not None:
            return behaviour.ends_as, behaviour.lifetime_seconds
        return None


# ---- invariants


def check_invariants(cluster: Cluster) -> None:
    """What must hold after every commit, whatever happened."""
    by_slot: dict[object, list[pb.Task]] = {}
    by_node: dict[str, list[pb.Task]] = {}
    for task in cluster.view.tasks:
        if task.desired_state == pb.TASK_STATE_RUNNING and not is_terminal(task.status.state):
            by_slot.setdefault(slot_key(task), []).append(task)
        if is_occupying(task):
            by_node.setdefault(task.node_id, []).append(task)
    for slot, tasks in by_slot.items():
        check_slot(cluster, slot, tasks)
    for node_id, tasks in by_node.items():
        node = cluster.view.nodes.get(node_id)
        if node is not None:
            check_node(node, tasks)
            check_placement(cluster, node, tasks)


def check_placement(cluster: Cluster, node: pb.Node, tasks: Iterable[pb.Task]) -> None:
    for task in tasks:
        if task.status.state == pb.TASK_STATE_ASSIGNED and task.id not in cluster.placed:
            cluster.placed.add(task.id)
            assert node_matches(task.spec.placement.constraints, node), f"{task.id} is where it must not be"
            assert node.status.state == pb.NODE_STATE_READY, f"{task.id} is given to a node that is not ready"
            assert node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE


def check_slot(cluster: Cluster, slot: object, tasks: list[pb.Task]) -> None:
    service = cluster.view.services.get(tasks[0].service_id)
    if service is None:
        return
    starts_first = any(
        config.order == pb.UPDATE_ORDER_START_FIRST
        for spec in (service.spec, service.previous_spec)
        for config in (spec.update_config, spec.rollback_config)
    )
    allowed = 2 if starts_first else 1
    assert len(tasks) <= allowed, f"{len(tasks)} tasks are to run in slot {slot}"


def check_node(node: pb.Node, tasks: Iterable[pb.Task]) -> None:
    tasks = list(tasks)
    resources = node.description.resources
    cpus = sum(t.spec.resources.reservations.nano_cpus for t in tasks)
    memory = sum(t.spec.resources.reservations.memory_bytes for t in tasks)
    assert cpus <= resources.nano_cpus, f"processors of {node.id} are promised twice"
    assert memory <= resources.memory_bytes, f"memory of {node.id} is promised twice"
    ports = [
        (p.protocol, p.published_port)
        for t in tasks
        for p in t.endpoint.ports
        if p.publish_mode == pb.PUBLISH_MODE_HOST and p.published_port
    ]
    assert len(ports) == len(set(ports)), f"a host port of {node.id} is given twice"
