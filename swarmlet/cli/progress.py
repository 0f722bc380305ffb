"""Waits until a service is what was asked for, and draws how far it is.

`wait_for_service` is called after a create, update, scale or rollback. It follows
the Watch stream; `Convergence` judges what it says and is free of I/O. An update has
converged when the cluster says that its rollout is over (which includes the
monitoring period); anything else once every task has run for a moment, so that a
command that exits at once is told as what it is.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
import grpc

from swarmlet.api import pb
from swarmlet.api.taskstate import is_terminal, is_wanted
from swarmlet.cli.command import CliError
from swarmlet.cli.screen import Display, display_for
from swarmlet.cli.values import ellipsis, short_id

if TYPE_CHECKING:
    from swarmlet.cli.client import Client

BARS_MAX = 20
"""Services with more tasks than this get the overall line alone."""
TICK_SECONDS = 1.0
"""How often a countdown is redrawn while nothing changes."""
STABLE_SECONDS = 1.0
"""How long all tasks must run before that counts, and a missing one be missing (Docker: 5 s)."""

_STEPS = {
    pb.TASK_STATE_NEW: 1,
    pb.TASK_STATE_PENDING: 3,
    pb.TASK_STATE_ASSIGNED: 4,
    pb.TASK_STATE_ACCEPTED: 5,
    pb.TASK_STATE_PREPARING: 6,
    pb.TASK_STATE_READY: 7,
    pb.TASK_STATE_STARTING: 8,
    pb.TASK_STATE_RUNNING: 9,
}
_STEPS_ALL = 9
_STATE_WIDTH = 9
_ERROR_WIDTH = 75
_MONITOR_NS_DEFAULT = 5_000_000_000
_ROLLING = (pb.UPDATE_STATE_UPDATING, pb.UPDATE_STATE_ROLLBACK_STARTED)


@dataclass
class Tally:
    done: int
    total: int


class Convergence:
    """What is known of one service. `take` what the stream brings, then `look`."""

    def __init__(self, service_id: str, display: Display, *, minimum_version: int = 0) -> None:
        self._service_id = service_id
        self._display = display
        self._minimum_version = minimum_version
        self._service: pb.Service | None = None
        self._tasks: dict[str, pb.Task] = {}
        self._converged_at: float | None = None
        self._given_up_since: float | None = None
        self._slots: dict[int, int] = {}
        self._rolled = False
        self._rollback_told = False

    @property
    def is_known(self) -> bool:
        """Whether the service, as this command left it, has been seen."""
        return self._service is not None and self._service.version.index >= self._minimum_version

    def take(self, response: pb.WatchResponse) -> None:
        """Raises CliError when the service was removed."""
        if response.snapshot:
            self._tasks.clear()
        for event in response.events:
            which = event.object.WhichOneof("object")
            if which == "task":
                task = event.object.task
                if event.kind == pb.CHANGE_KIND_DELETE:
                    self._tasks.pop(task.id, None)
                else:
                    self._tasks[task.id] = task
            elif which == "service":
                if event.kind == pb.CHANGE_KIND_DELETE:
                    raise CliError(f"service {self._service_id} was removed")
                self._service = event.object.service

    def look(self, now_seconds: float) -> bool:
        """Draws the state; True once all is done. Raises CliError when the rollout was paused."""
        service = self._service
        if service is None or not self.is_known:
            return False
        state = service.update_status.state
        message = service.update_status.message
        if state == pb.UPDATE_STATE_PAUSED:
            raise CliError(f"service update paused: {message}")
        if state == pb.UPDATE_STATE_ROLLBACK_PAUSED:
            raise CliError(f"service rollback paused: {message}")
        if state == pb.UPDATE_STATE_ROLLBACK_STARTED and not self._rollback_told:
            self._rollback_told = True
            self._display.show("rollback", message)
        if service.spec.mode.WhichOneof("mode") in ("replicated_job", "global_job"):
            return self._look_at_job(service)
        all_run = self._look_at_tasks(service, self._rollback_told)
        self._rolled = self._rolled or state in _ROLLING
        if state in _ROLLING:
            self._verify(service, now_seconds, all_run)
            return False
        if not self._rolled:
            self._check_given_up(service, now_seconds)
            if not self._is_stable(now_seconds, all_run):
                return False
        # A rollout that ended with failures it was told to tolerate is over as well.
        if not all_run and state != pb.UPDATE_STATE_COMPLETED:
            return False
        if all_run:
            self._display.show("verify", "Service converged")
        if state == pb.UPDATE_STATE_ROLLBACK_COMPLETED and self._rolled:
            self._display.show("rollback", message)
        return True

    def _verify(self, service: pb.Service, now_seconds: float, all_run: bool) -> None:
        config = service.spec.update_config
        monitor_ns = config.monitor_ns if config.HasField("monitor_ns") else _MONITOR_NS_DEFAULT
        self._count_down(now_seconds, all_run, monitor_ns / 1e9)

    def _is_stable(self, now_seconds: float, all_run: bool) -> bool:
        return self._count_down(now_seconds, all_run, STABLE_SECONDS) <= 0

    def _count_down(self, now_seconds: float, all_run: bool, seconds: float) -> float:
        """How much of `seconds` of all tasks running is left; shows it."""
        if not all_run:
            if self._converged_at is not None:
                self._display.show("verify", "Detected task failure")
            self._converged_at = None
            return seconds
        if self._converged_at is None:
            self._converged_at = now_seconds
        left = seconds - (now_seconds - self._converged_at)
        if left > 0:
            shown = max(1, round(left))
            self._display.show(
                "verify", f"Waiting {shown} seconds to verify that tasks are stable...", is_countdown=True
            )
        return left

    def _check_given_up(self, service: pb.Service, now_seconds: float) -> None:
        """Raises CliError once a slot's task has failed and nothing takes its place."""
        current = [t for t in self._tasks.values() if is_up_to_date(t, service)]
        wanted = {(t.slot, t.slot or t.node_id) for t in current if is_wanted(t)}
        failed = [
            t
            for t in current
            if t.status.state in (pb.TASK_STATE_FAILED, pb.TASK_STATE_REJECTED)
            and (t.slot, t.slot or t.node_id) not in wanted
            and t.slot <= service.spec.mode.replicated.replicas
        ]
        if not failed:
            self._given_up_since = None
            return
        if self._given_up_since is None:
            self._given_up_since = now_seconds
        if now_seconds - self._given_up_since >= STABLE_SECONDS:
            task = max(failed, key=lambda t: (t.created_at.seconds, t.created_at.nanos))
            raise CliError(
                f"service {service.spec.name} did not converge: {task.name} failed and is not restarted: "
                f"{task.status.err}"
            )

    def _look_at_tasks(self, service: pb.Service, is_rollback: bool) -> bool:
        current = [t for t in self._tasks.values() if is_up_to_date(t, service)]
        if service.spec.mode.WhichOneof("mode") == "global":
            chosen = _lowest_by(current, lambda task: task.node_id)
            total = len(chosen)
            names = {key: short_id(key) for key in chosen}
        else:
            total = service.spec.mode.replicated.replicas
            chosen = _lowest_by(current, lambda task: str(task.slot))
            for task in sorted(chosen.values(), key=lambda task: task.slot):
                self._slots.setdefault(task.slot, len(self._slots) + 1)
            names = {key: f"{self._slots[t.slot]}/{total}" for key, t in chosen.items()}
        if total == 0 and service.spec.mode.WhichOneof("mode") == "global":
            self._display.show("overall progress", "waiting for new tasks")
            return False
        running = sum(_runs(task) for task in chosen.values())
        prefix = "rolling back update: " if is_rollback else ""
        self._display.show("overall progress", f"{prefix}{running} out of {total} tasks")
        if total <= BARS_MAX:
            if service.spec.mode.WhichOneof("mode") != "global":
                for number in range(1, total + 1):
                    self._display.prepare(f"{number}/{total}")
            for key in sorted(chosen, key=lambda key: (chosen[key].slot, key)):
                if chosen[key].slot == 0 or self._slots[chosen[key].slot] <= total:
                    self._draw(names[key], chosen[key], current)
        return running == total

    def _draw(self, name: str, task: pb.Task, current: Iterable[pb.Task]) -> None:
        error = task.status.err or _failure_before(task, current)
        if error:
            self._display.show(name, ellipsis(" ".join(error.split()), _ERROR_WIDTH))
        elif not is_terminal(task.status.state):
            word = pb.TaskState.Name(task.status.state).removeprefix("TASK_STATE_").lower()
            self._display.show(name, f"{word:<{_STATE_WIDTH}}", share=_STEPS[task.status.state] / _STEPS_ALL)

    def _look_at_job(self, service: pb.Service) -> bool:
        tasks = [t for t in self._tasks.values() if t.job_iteration == service.job_status.job_iteration]
        complete = sum(task.status.state == pb.TASK_STATE_COMPLETE for task in tasks)
        active = sum(not is_terminal(task.status.state) for task in tasks)
        total = service.spec.mode.replicated_job.total_completions
        if service.spec.mode.WhichOneof("mode") == "global_job":
            total = len({task.node_id for task in tasks})
        self._display.show("job progress", f"{complete} out of {total} complete")
        self._display.show("active tasks", f"{active} out of {total - complete} tasks")
        if total == 0 or complete < total:
            return False
        self._display.show("verify", "job complete")
        return True


def is_up_to_date(task: pb.Task, service: pb.Service) -> bool:
    """Whether the task needs no replacement to be what the service says.

    The same judgement as the cluster's: where only the placement differs, or only
    the published side of an ingress port, a task stays.
    """
    if task.spec_version == service.spec_version and service.spec_version.index:
        return True
    mine, wanted = pb.TaskSpec(), pb.TaskSpec()
    mine.CopyFrom(task.spec)
    wanted.CopyFrom(service.spec.task_template)
    for spec in (mine, wanted):
        spec.ClearField("placement")
        spec.container_spec.ClearField("pull_auth")
    return mine == wanted and _ports(task.endpoint.spec) == _ports(service.spec.endpoint_spec)


def _ports(spec: pb.EndpointSpec) -> set[tuple[int, int, int, int]]:
    return {
        (p.protocol, p.publish_mode, p.target_port, p.published_port if p.publish_mode else 0)
        for p in spec.ports
    }


def _runs(task: pb.Task) -> bool:
    return not is_terminal(task.desired_state) and task.status.state == pb.TASK_STATE_RUNNING


def _lowest_by(tasks: Iterable[pb.Task], key: object) -> dict[str, pb.Task]:
    """Per slot or node the task that is meant to run longest, hence the lowest desired state."""
    assert callable(key)
    chosen: dict[str, pb.Task] = {}
    for task in tasks:
        other = chosen.get(key(task))
        mine = (task.desired_state, task.status.state)
        if other is None or mine < (other.desired_state, other.status.state):
            chosen[key(task)] = task
    return chosen


def _failure_before(task: pb.Task, current: Iterable[pb.Task]) -> str:
    """Why the task's predecessor failed, while the task itself waits for its start."""
    if task.status.state >= pb.TASK_STATE_STARTING or is_terminal(task.desired_state):
        return ""
    failed = [
        other
        for other in current
        if other.slot == task.slot
        and (task.slot or other.node_id == task.node_id)
        and other.status.state in (pb.TASK_STATE_FAILED, pb.TASK_STATE_REJECTED)
    ]
    newest = max(failed, key=lambda t: (t.created_at.seconds, t.created_at.nanos), default=None)
    return newest.status.err if newest is not None else ""


_End = grpc.RpcError | None


class _Stream:
    """The Watch stream, read by a thread of its own so that countdowns and Ctrl-C need not wait for it."""

    def __init__(self, client: Client, service_id: str) -> None:
        request = pb.WatchRequest(kinds=["service", "task"], service_id=service_id)
        self._call = client.control.Watch(request)
        self._queue: queue.Queue[pb.WatchResponse | _End] = queue.Queue(maxsize=1000)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        end: _End = None
        try:
            for response in self._call:
                self._queue.put(response)
        except grpc.RpcError as error:
            end = error
        self._queue.put(end)

    def next(self) -> pb.WatchResponse | _End:
        """Raises queue.Empty after TICK_SECONDS."""
        return self._queue.get(timeout=TICK_SECONDS)

    def close(self) -> None:
        self._call.cancel()  # type: ignore[no-untyped-call,unused-ignore]


def wait_for_service(
    client: Client, service_id: str, *, minimum_version: int, timeout_seconds: float, quiet: bool = False
) -> None:
    """Returns when the service has converged, or when the user stops waiting (Ctrl-C).

    Raises CliError when its rollout was paused, when it was removed, and when the
    daemon cannot be reached for `timeout_seconds`.
    """
    display = display_for(quiet=quiet)
    convergence = Convergence(service_id, display, minimum_version=minimum_version)
    stream = _Stream(client, service_id)
    silent_since: float | None = time.monotonic()
    try:
        while True:
            try:
                item = stream.next()
            except queue.Empty:
                item = pb.WatchResponse()
            if isinstance(item, pb.WatchResponse):
                convergence.take(item)
                silent_since = None if convergence.is_known else silent_since or time.monotonic()
                if convergence.look(time.monotonic()):
                    return
            else:
                silent_since = silent_since or time.monotonic()
                stream.close()
                if item is not None and item.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise client.explain(item)
                if item is not None and time.monotonic() - silent_since > timeout_seconds:
                    raise client.explain(item)
                time.sleep(0.2)
                stream = _Stream(client, service_id)
            if silent_since is not None and time.monotonic() - silent_since > timeout_seconds:
                raise CliError(f"service {service_id} not found")
    except KeyboardInterrupt:
        display.close()
        click.echo("Operation continuing in background.")
        click.echo(f"Use `swarmlet service ps {service_id}` to check progress.")
    finally:
        display.close()
        stream.close()
