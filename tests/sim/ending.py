"""What must be so when a simulated cluster has been whole for a while.

Each check yields what is not (yet) as it must be, in words. `differences` is asked again
and again until it is empty or the time is over.
"""

from __future__ import annotations

from collections.abc import Iterator

from swarmlet.api import pb, taskstate
from swarmlet.api.constraints import node_matches
from swarmlet.store.objects import kind_of
from swarmlet.store.store import Store
from swarmlet.store.tables import Tables, slot_key
from tests.sim.clusterworld import ClusterWorld
from tests.sim.users import Promises, Watching

_UPDATING = (pb.UPDATE_STATE_UPDATING, pb.UPDATE_STATE_ROLLBACK_STARTED)
_PAUSED = (pb.UPDATE_STATE_PAUSED, pb.UPDATE_STATE_ROLLBACK_PAUSED)


def differences(world: ClusterWorld, watching: list[Watching]) -> Iterator[str]:
    """Everything that ends by itself."""
    yield from nodes_are_ready(world)
    yield from managers_hold_the_same(world)
    yield from services_are_as_asked(world)
    yield from rollouts_have_ended(world)
    yield from removed_services_left_nothing(world)
    yield from engines_run_what_is_stored(world)
    yield from agents_say_what_is_stored(world)
    yield from balancers_lead_to_what_runs(world)
    yield from watchers_know_what_is_stored(world, watching)


def nodes_are_ready(world: ClusterWorld) -> Iterator[str]:
    for node in world.judge.truth.view.nodes:
        if node.status.state != pb.NODE_STATE_READY:
            yield f"node {node.id} is not ready"


def managers_hold_the_same(world: ClusterWorld) -> Iterator[str]:
    truth = _content(world.judge.truth)
    managers = world.managers()
    if len(managers) != len(world.manager_names):
        yield f"only {len(managers)} managers run"
    for manager in managers:
        held = _content(manager.store)
        if held != truth:
            differ = sorted(f"{k} {i[:5]}" for k, i in held.keys() ^ truth.keys())
            differ += sorted(
                f"{k} {i[:5]}" for k, i in held.keys() & truth.keys() if held[k, i] != truth[k, i]
            )
            yield f"{manager.address} holds something else: {', '.join(differ[:4])}"


def services_are_as_asked(world: ClusterWorld) -> Iterator[str]:
    """Exactly the replicas that were asked for run, where they may, and nothing else of the service."""
    view = world.judge.truth.view
    for service in view.services:
        name = service.spec.name
        running = [t for t in view.tasks.find("service", service.id) if taskstate.is_running(t)]
        for task in running:
            node = view.nodes.get(task.node_id)
            if node is None or node.spec.availability == pb.NODE_AVAILABILITY_DRAIN:
                yield f"{name}: {task.id[:5]} runs on {task.node_id}, which is drained"
            elif not node_matches(task.spec.placement.constraints, node):
                yield f"{name}: {task.id[:5]} runs on {task.node_id} against its constraints"
        if service.spec.mode.WhichOneof("mode") == "replicated":
            wanted = service.spec.mode.replicated.replicas
            slots = {str(t.slot) for t in running}
        else:
            wanted = sum(_takes_global(service, node) for node in view.nodes)
            slots = {t.node_id for t in running}
        missing = wanted - len(running)
        if len(running) != len(slots) or not 0 <= missing <= _excused(world, service):
            yield f"{name}: {len(running)} of {wanted} tasks run in {len(slots)} slots"
        image = service.spec.task_template.container_spec.image
        stale = [t for t in running if t.spec.container_spec.image != image]
        # Where the new task was given up, and where there is no room for it, the old one goes on.
        may_stay = service.update_status.state in _PAUSED or _may_give_up(service)
        if stale and not may_stay and not _waiting_for_room(world, service):
            yield f"{name}: {len(stale)} tasks are of another image than {image}"
        up = [
            task_id
            for host in world.hosts.values()
            for task_id in host.engine.running_task_ids()
            if host.engine.known[task_id].service_id == service.id
        ]
        if sorted(up) != sorted(t.id for t in running):
            yield f"{name}: {len(up)} tasks run in engines, {len(running)} are stored as running"


def _excused(world: ClusterWorld, service: pb.Service) -> int:
    """How many slots are rightly without a running task: given up by policy, or without a node with room."""
    slots: dict[object, list[pb.Task]] = {}
    for task in world.judge.truth.view.tasks.find("service", service.id):
        slots.setdefault(slot_key(task), []).append(task)
    given_up = sum(
        _may_give_up(service) and all(task.desired_state == pb.TASK_STATE_SHUTDOWN for task in tasks)
        for tasks in slots.values()
    )
    return given_up + len(_waiting_for_room(world, service))


def _may_give_up(service: pb.Service) -> bool:
    policy = service.spec.task_template.restart_policy
    return bool(policy.max_attempts) or policy.condition != pb.RESTART_CONDITION_ANY


def _waiting_for_room(world: ClusterWorld, service: pb.Service) -> list[pb.Task]:
    view = world.judge.truth.view
    waiting = [
        task
        for task in view.tasks.find("service", service.id)
        if task.status.state == pb.TASK_STATE_PENDING and taskstate.is_wanted(task) and task.status.err
    ]
    return [task for task in waiting if not any(_has_room(view, node, task) for node in view.nodes)]


def _has_room(view: Tables, node: pb.Node, task: pb.Task) -> bool:
    if node.spec.availability != pb.NODE_AVAILABILITY_ACTIVE or task.node_id not in ("", node.id):
        return False
    occupying = [t for t in view.tasks.find("node", node.id) if taskstate.is_occupying(t)]
    used = sum(t.spec.resources.reservations.nano_cpus for t in occupying)
    free = node.description.resources.nano_cpus - used
    return free >= task.spec.resources.reservations.nano_cpus and node_matches(
        task.spec.placement.constraints, node
    )


def _takes_global(service: pb.Service, node: pb.Node) -> bool:
    constraints = service.spec.task_template.placement.constraints
    return node.spec.availability == pb.NODE_AVAILABILITY_ACTIVE and node_matches(constraints, node)


def rollouts_have_ended(world: ClusterWorld) -> Iterator[str]:
    for service in world.judge.truth.view.services:
        if service.update_status.state in _UPDATING and not _waiting_for_room(world, service):
            yield f"{service.spec.name}: its update goes on ({service.update_status.message})"


def removed_services_left_nothing(world: ClusterWorld) -> Iterator[str]:
    view = world.judge.truth.view
    left = [task.name for task in view.tasks if view.services.get(task.service_id) is None]
    if left:
        yield f"tasks of removed services are left: {', '.join(sorted(left)[:4])}"


def engines_run_what_is_stored(world: ClusterWorld) -> Iterator[str]:
    view = world.judge.truth.view
    for host in world.hosts.values():
        for task_id in host.engine.task_ids():
            task = view.tasks.get(task_id)
            if task is None or task.node_id != host.name:
                yield f"{host.name} still has something of {host.engine.known[task_id].name} ({task_id[:5]})"
    for task in view.tasks:
        engine = world.hosts[task.node_id].engine if task.node_id else None
        is_up = engine is not None and task.id in engine.running_task_ids()
        is_lost = view.nodes.get(task.node_id) is None
        if task.status.state == pb.TASK_STATE_RUNNING and not is_up and not is_lost:
            yield f"{task.name} ({task.id[:5]}) is stored as running and does not run on {task.node_id}"


def agents_say_what_is_stored(world: ClusterWorld) -> Iterator[str]:
    view = world.judge.truth.view
    for host in world.hosts.values():
        if view.nodes.get(host.name) is None:
            # Removed; what ran there is gone, or `engines_run_what_is_stored` says so.
            continue
        agent = host.daemon.agent if host.daemon is not None else None
        if agent is None or not agent.is_connected:
            yield f"the agent of {host.name} has no session"
            continue
        for task in view.tasks.find("node", host.name):
            machine = agent._worker.machine(task.id)
            if machine is None and taskstate.is_occupying(task):
                yield f"{host.name} knows nothing of {task.name} ({task.id[:5]})"
            elif machine is not None and not _is_same_state(machine.status.state, task.status.state):
                said, stored = (pb.TaskState.Name(s) for s in (machine.status.state, task.status.state))
                yield f"{host.name} says {said} of {task.name} ({task.id[:5]}), stored is {stored}"


def balancers_lead_to_what_runs(world: ClusterWorld) -> Iterator[str]:
    """Every node leads to every task that runs for a published port, and to nothing else."""
    view = world.judge.truth.view
    published = {service.id for service in view.services if service.endpoint.ports}
    serving = {t.id for t in view.tasks if t.service_id in published and taskstate.is_running(t)}
    for host in world.hosts.values():
        if view.nodes.get(host.name) is None:
            continue
        led_to = host.daemon.proxy.active if host.daemon is not None else frozenset()
        if led_to != serving:
            yield f"{host.name} leads to {len(led_to - serving)} too many, {len(serving - led_to)} too few"


def _is_same_state(said: pb.TaskState.ValueType, stored: pb.TaskState.ValueType) -> bool:
    # How a task that was not wanted any more has ended is for the managers to say.
    return said == stored or (taskstate.is_terminal(said) and taskstate.is_terminal(stored))


def watchers_know_what_is_stored(world: ClusterWorld, watching: list[Watching]) -> Iterator[str]:
    view = world.judge.truth.view
    truth = {
        (kind_of(value), value.id): value.SerializeToString(deterministic=True)
        for value in [*view.services, *view.tasks]
    }
    for number, watcher in enumerate(watching):
        if watcher.objects != truth:
            differ = {k for k in watcher.objects.keys() | truth if watcher.objects.get(k) != truth.get(k)}
            yield f"watcher {number} was told something else of {sorted(differ)[:3]}"


def broken_promises(world: ClusterWorld, promises: Promises) -> Iterator[str]:
    """Acknowledged writes that are not there, and refused ones that are."""
    operations = world.judge.operations
    for operation_id, index in promises.done.items():
        at = operations.get(operation_id)
        if at is None and operation_id in promises.always_done:
            yield f"acknowledged write {operation_id[:5]} is lost"
        elif at is not None and at != index:
            yield f"write {operation_id[:5]} was told index {index} and is at {at}"
    for operation_id in promises.refused & operations.keys():
        yield f"write {operation_id[:5]} was refused for certain and is there"
    for manager in world.managers():
        for operation_id, index in operations.items():
            if manager.store.operation_index(operation_id) not in (index, None):
                yield f"{manager.address} has {operation_id[:5]} at another index"


def _content(store: Store) -> dict[tuple[str, str], bytes]:
    return {
        (table.kind, value.id): value.SerializeToString(deterministic=True)
        for table in store.view.all_tables()
        for value in table
    }
