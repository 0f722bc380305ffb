"""What must hold at every moment of a simulated cluster's life.

The judge hears of every committed entry and of every start and stop in an engine. What
is committed first on any manager is the truth, kept in a store of its own. The checks
are the methods named `check_...`; what they find is in `violations`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import ExitStack

from swarmlet.api import pb, taskstate
from swarmlet.api.constraints import node_matches
from swarmlet.manager.orchestrator.tasks import CLOCK_SLACK
from swarmlet.store.store import Store
from swarmlet.store.tables import slot_key
from swarmlet.store.watch import Change
from tests.sim.hosts import EPOCH, Host

COMMIT_SECONDS_MAX = 1.0
"""How far apart what was planned together may be committed."""
OBEY_SECONDS = 5.0
"""How long, while nothing is broken, a task may still be started that is not wanted any more."""
BALANCER_SECONDS = 2.0 - 0.1
"""The bounded wait of a shutdown for the balancers, less what it may begin before the task is to stop."""
PREDECESSOR_SECONDS = 60.0
"""How long beyond its grace period a slot waits for a task that does not stop."""
GRACE_SECONDS = 10.0


class Judge:
    def __init__(self, hosts: dict[str, Host], *, calm_since: Callable[[], float]) -> None:
        """`calm_since` is the time from which on nothing has been broken; infinite while something is."""
        self.violations: list[str] = []
        self.truth = Store(now=lambda: EPOCH, rng=random.Random(0))
        self.operations: dict[str, int] = {}
        """Operation ids and the index at which each was done, none forgotten."""
        self.history: list[str] = []
        """What happened, for people who look for the cause of a violation."""
        self.starts = 0
        self._hosts = hosts
        self._calm_since = calm_since
        self._loop = asyncio.get_running_loop()
        self._entries: dict[int, tuple[str, bytes]] = {}
        self._unwanted_at: dict[str, float] = {}
        self._let_run: set[str] = set()
        self._fitness_changed_at: dict[str, float] = {}
        self._last_down_at: dict[str, float] = {}
        self._started_at: dict[tuple[str, str], float] = {}
        self._lost_power_at: dict[str, float] = {}
        self._starts_first: set[str] = set()
        self._leaders: dict[int, str] = {}
        self._apart_at = float("-inf")
        self._listening = ExitStack()
        self._listening.enter_context(self.truth.watching(self._hear))

    def close(self) -> None:
        self._listening.close()

    def violation(self, text: str) -> None:
        self.violations.append(f"{self._loop.time() - 1000:.3f} {text}")
        self.note("VIOLATION " + text)

    def note(self, text: str) -> None:
        self.history.append(f"{self._loop.time() - 1000:9.3f} {text}")

    # ---- what is heard

    def applied(self, name: str, index: int, data: bytes) -> None:
        self.check_managers_apply_the_same(name, index, data)
        if index > self.truth.applied_index:
            self.truth.apply(index, data)
            transaction = pb.Transaction.FromString(data)
            if self.truth.operation_index(transaction.operation_id) == index:
                self.operations[transaction.operation_id] = index

    def led(self, name: str, term: int) -> None:
        self.check_one_leader_per_term(name, term)

    def clock_is_set(self) -> None:
        """About to be: this is the last moment at which the clocks are as they were."""
        self._clocks_apart_at()

    def lost_power(self, host: str) -> None:
        self._lost_power_at[host] = self._loop.time()

    def task_started(self, host: str, task_id: str) -> None:
        self.starts += 1
        self.note(f"{host} starts {_name(self._task(host, task_id))}")
        self.check_task_may_start(host, task_id)
        self.check_task_runs_once(host, task_id)
        self._started_at[host, task_id] = self._loop.time()
        self.check_slot_is_not_overrun(host, task_id)

    def task_stopping(self, host: str, task_id: str) -> None:
        self.note(f"{host} stops {_name(self._task(host, task_id))}")
        self.check_task_has_left_the_balancers(host, task_id)

    def _hear(self, change: Change) -> bool:
        try:
            match change.old, change.new:
                case pb.Task() as old, pb.Task() as new:
                    self.check_states_move_forward(old, new)
                    self.check_task_stays_what_it_is(old, new)
                    if new.status.state == pb.TASK_STATE_ASSIGNED and old.status.state < new.status.state:
                        self.check_assigned_node_is_fit(new)
                        self.check_nothing_is_promised_twice(new)
                case pb.Task() as old, None:
                    self.check_forgotten_task_is_over(old)
            self._note(change)
        except Exception as error:
            self.violation(f"the judge failed: {error!r}")
        return False

    def _note(self, change: Change) -> None:
        now = self._loop.time()
        self.note(_told(change))
        match change.current:
            case pb.Task() as task:
                if task.desired_state == pb.TASK_STATE_RUNNING:
                    self._let_run.add(task.id)
                if task.desired_state > pb.TASK_STATE_RUNNING:
                    self._unwanted_at.setdefault(task.id, now)
            case pb.Service() as service:
                if service.spec.update_config.order == pb.UPDATE_ORDER_START_FIRST:
                    self._starts_first.add(service.id)
            case pb.Node() as node:
                old = change.old
                if not isinstance(old, pb.Node) or _fitness(old) != _fitness(node):
                    self._fitness_changed_at[node.id] = now
                was_down = isinstance(old, pb.Node) and old.status.state == pb.NODE_STATE_DOWN
                if was_down or node.status.state == pb.NODE_STATE_DOWN:
                    self._last_down_at[node.id] = now

    # ---- the managers

    def check_managers_apply_the_same(self, name: str, index: int, data: bytes) -> None:
        first, known = self._entries.setdefault(index, (name, data))
        if known != data:
            self.violation(f"{first} and {name} applied different entries at {index}")

    def check_one_leader_per_term(self, name: str, term: int) -> None:
        if term not in self._leaders:
            self.note(f"{name} leads term {term}")
        first = self._leaders.setdefault(term, name)
        if first != name:
            self.violation(f"{first} and {name} both led term {term}")

    # ---- what is stored of tasks

    def check_states_move_forward(self, old: pb.Task, new: pb.Task) -> None:
        if not taskstate.may_move(old.status.state, new.status.state):
            self.violation(f"{_name(new)} moved from {_state(old)} to {_state(new)}")
        if new.desired_state < old.desired_state:
            self.violation(f"{_name(new)}: desired state went back to {_word(new.desired_state)}")

    def check_task_stays_what_it_is(self, old: pb.Task, new: pb.Task) -> None:
        if old.node_id and new.node_id != old.node_id:
            self.violation(f"{_name(new)} went from node {old.node_id} to {new.node_id}")
        if (old.spec, old.slot, old.service_id) != (new.spec, new.slot, new.service_id):
            self.violation(f"{_name(new)}: what the task is was changed")

    def check_assigned_node_is_fit(self, task: pb.Task) -> None:
        """Of a node that changed a moment ago the scheduler could not know yet: that is put right later."""
        node = self.truth.view.nodes.get(task.node_id)
        changed_at = self._fitness_changed_at.get(task.node_id, 0.0)
        if self._loop.time() - changed_at > COMMIT_SECONDS_MAX and not _is_fit(node, task):
            self.violation(f"{_name(task)} was given to {task.node_id}, which is not fit for it")

    def check_nothing_is_promised_twice(self, task: pb.Task) -> None:
        node = self.truth.view.nodes.get(task.node_id)
        tasks = self.truth.view.tasks.find("node", task.node_id)
        used = sum(t.spec.resources.reservations.nano_cpus for t in tasks if taskstate.is_occupying(t))
        if node is not None and used > node.description.resources.nano_cpus:
            self.violation(f"{_name(task)} was given to {task.node_id}, which has no room for it")

    def check_forgotten_task_is_over(self, task: pb.Task) -> None:
        is_over = taskstate.is_terminal(task.status.state) or task.status.state < pb.TASK_STATE_ASSIGNED
        if not is_over:
            self.violation(f"{_name(task)} was deleted while {_state(task)}")

    # ---- what runs

    def check_task_may_start(self, host: str, task_id: str) -> None:
        """Nothing starts that was not let run, nor, where nothing is broken, what is not wanted any more."""
        task = self._task(host, task_id)
        now = self._loop.time()
        if task.node_id != host:
            self.violation(f"{_name(task)} of {task.node_id} was started on {host}")
        if task_id not in self._let_run:
            self.violation(f"{_name(task)} was started before it was let run")
        unwanted_at = self._unwanted_at.get(task_id, now)
        if now - max(unwanted_at, self._calm_since()) > OBEY_SECONDS:
            self.violation(f"{_name(task)} was started {now - unwanted_at:.1f} s after it was to stop")
        node = self.truth.view.nodes.get(host)
        changed_at = self._fitness_changed_at.get(host, 0.0)
        if now - max(changed_at, self._calm_since()) > OBEY_SECONDS and not _is_fit(
            node, task, paused_too=True
        ):
            self.violation(f"{_name(task)} was started on {host}, which is not fit for it any more")

    def check_task_runs_once(self, host: str, task_id: str) -> None:
        """Only where a host lost its power, and with it all memory of the start, may one be repeated."""
        before = self._started_at.get((host, task_id))
        if before is not None and self._lost_power_at.get(host, -1.0) < before:
            self.violation(f"{_name(self._task(host, task_id))} was started twice on {host}")

    def check_slot_is_not_overrun(self, host: str, task_id: str) -> None:
        """One task of a slot runs; two where the service starts the new one first.

        Not counted are tasks on a node that has been DOWN since they were started (nobody
        can stop them, so Swarm too starts others), and tasks that do not stop although
        the slot has waited for them as long as it may: by the managers' clocks, so where
        these do not agree the check says nothing.
        """
        if self._loop.time() - self._clocks_apart_at() < GRACE_SECONDS + PREDECESSOR_SECONDS:
            return
        task = self._task(host, task_id)
        now = self._loop.time()
        running = []
        for other in self._hosts.values():
            for other_id in other.engine.running_task_ids():
                candidate = other.engine.known[other_id]
                if slot_key(candidate) != slot_key(task):
                    continue
                started_at = self._started_at.get((other.name, other_id), now)
                was_down = self._was_down_since(other.name, started_at)
                waited = now - self._unwanted_at.get(other_id, now)
                if not was_down and waited <= GRACE_SECONDS + PREDECESSOR_SECONDS:
                    running.append(f"{other_id[:5]} on {other.name}")
        limit = 2 if task.service_id in self._starts_first else 1
        if len(running) > limit:
            self.violation(f"{len(running)} tasks of {_name(task)}'s slot run: {', '.join(running)}")

    def check_task_has_left_the_balancers(self, host: str, task_id: str) -> None:
        """A shutdown begins when no connected node sends connections to the task, or after the wait.

        Not counted is a node that was DOWN when the task was to stop: it comes back with
        what it knew before.
        """
        now = self._loop.time()
        waited = now - self._unwanted_at.get(task_id, now)
        if waited >= BALANCER_SECONDS:
            return
        for other in self._hosts.values():
            daemon = other.daemon
            if daemon is None or daemon.agent is None or not daemon.agent.is_connected:
                continue
            was_down = self._was_down_since(other.name, now - waited - COMMIT_SECONDS_MAX)
            if daemon.proxy.leads_to(task_id, now) and not was_down:
                name = _name(self._task(host, task_id))
                self.violation(f"{name} is stopped after {waited:.2f} s while {other.name} leads to it")

    def _task(self, host: str, task_id: str) -> pb.Task:
        return self._hosts[host].engine.known[task_id]

    def _clocks_apart_at(self) -> float:
        """When the managers' clocks last did not agree."""
        offsets = [host.clock_offset for host in self._hosts.values() if host.is_manager]
        if max(offsets) - min(offsets) > CLOCK_SLACK:
            self._apart_at = self._loop.time()
        return self._apart_at

    def _was_down_since(self, node_id: str, at: float) -> bool:
        node = self.truth.view.nodes.get(node_id)
        is_down = node is None or node.status.state == pb.NODE_STATE_DOWN
        return is_down or self._last_down_at.get(node_id, float("-inf")) >= at


def _fitness(node: pb.Node) -> object:
    return (node.status.state, node.spec, node.description.hostname)


def _is_fit(node: pb.Node | None, task: pb.Task, *, paused_too: bool = False) -> bool:
    if node is None or node.status.state != pb.NODE_STATE_READY:
        return False
    if node.spec.availability == pb.NODE_AVAILABILITY_PAUSE:
        return paused_too
    is_active = node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE
    return is_active and node_matches(task.spec.placement.constraints, node)


def _told(change: Change) -> str:
    value = change.current
    what = f"#{change.index} {pb.ChangeKind.Name(change.kind).removeprefix('CHANGE_KIND_').lower()}"
    match value:
        case pb.Task():
            text = f"{_state(value)} wanted {_word(value.desired_state)} on {value.node_id or '-'}"
            return f"{what} task {_name(value)} {text} {value.spec.container_spec.image} {value.status.err}"
        case pb.Node():
            state = pb.NodeState.Name(value.status.state).removeprefix("NODE_STATE_")
            return f"{what} node {value.id} {state} {value.spec.availability} {dict(value.spec.labels)}"
        case pb.Service():
            state = pb.UpdateState.Name(value.update_status.state).removeprefix("UPDATE_STATE_")
            replicas = value.spec.mode.replicated.replicas
            image = value.spec.task_template.container_spec.image
            return f"{what} service {value.spec.name} {replicas} {image} {state}"
    return f"{what} {type(value).__name__}"


def _name(task: pb.Task) -> str:
    return f"{task.name or task.service_name} ({task.id[:5]})"


def _state(task: pb.Task) -> str:
    return _word(task.status.state)


def _word(state: pb.TaskState.ValueType) -> str:
    return pb.TaskState.Name(state).removeprefix("TASK_STATE_")
