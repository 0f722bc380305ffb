"""All tasks of the node: makes what is assigned come true, and adopts what an earlier daemon left.

Driven by the agent with `Assignments`; owns the task machines, the journal and the
data of secrets and configs, which it keeps in memory only.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from swarmlet.agent.journal import TaskJournal
from swarmlet.agent.reporter import Reporter
from swarmlet.agent.taskmachine import Reachability, TaskMachine
from swarmlet.api import pb
from swarmlet.runtime.base import Runtime, TaskResources

LEFTOVER_RETRY_SECONDS = 2.0
LEFTOVER_ATTEMPTS = 5

log = structlog.get_logger(__name__)


@dataclass
class _Running:
    machine: TaskMachine
    life: asyncio.Task[None]


class Worker:
    def __init__(
        self,
        *,
        node_id: str,
        runtime: Runtime,
        reachability: Reachability,
        journal: TaskJournal,
        reporter: Reporter,
        now: Callable[[], datetime],
    ) -> None:
        self._node_id = node_id
        self._runtime = runtime
        self._reachability = reachability
        self._journal = journal
        self._reporter = reporter
        self._now = now
        self._hostname = ""
        self._tasks: dict[str, _Running] = {}
        self._removing: set[str] = set()
        self._services: dict[str, pb.ServiceEndpoints] = {}
        self._secrets: dict[str, pb.Secret] = {}
        self._configs: dict[str, pb.Config] = {}
        # What was on the node when this daemon started and nobody has claimed yet.
        self._leftovers: set[str] = set()
        self._orphans_removed = False
        self._background: set[asyncio.Task[None]] = set()

    async def start(self, hostname: str) -> None:
        """Adopts what the journal and the runtime know; call once, before the first assignments.

        A task that had not been started yet waits for a manager, since its secrets are
        with the managers. Raises what the runtime raises.
        """
        self._hostname = hostname
        self._leftovers = set(await self._runtime.leftovers())
        for task in self._journal.load():
            if task.status.state >= pb.TASK_STATE_STARTING:
                self._add(task)
                # The manager may not have heard of it.
                self._reporter.report(task.id, self._tasks[task.id].machine.status)
        log.info("tasks adopted", tasks=len(self._tasks), leftovers=len(self._leftovers))

    def apply(self, assignments: pb.Assignments) -> Sequence[pb.ServiceEndpoints]:
        """Takes up assignments and returns the whole endpoint table; tasks move on in the background."""
        if assignments.complete:
            self._services.clear()
            self._secrets.clear()
            self._configs.clear()
        _update(self._secrets, assignments.removed_secret_ids, {s.id: s for s in assignments.secrets})
        _update(self._configs, assignments.removed_config_ids, {c.id: c for c in assignments.configs})
        _update(
            self._services, assignments.removed_service_ids, {s.service_id: s for s in assignments.services}
        )
        for task in assignments.tasks:
            self._assign(task)
        removed = set(assignments.removed_task_ids)
        if assignments.complete:
            removed = self._tasks.keys() - {task.id for task in assignments.tasks}
            self._remove_orphans({task.id for task in assignments.tasks} | self._tasks.keys())
        for task_id in sorted(removed):
            self._remove(task_id)
        return list(self._services.values())

    def machine(self, task_id: str) -> TaskMachine | None:
        running = self._tasks.get(task_id)
        return None if running is None else running.machine

    async def stop(self) -> None:
        """Lets go of the tasks, which go on running."""
        pending = [*(r.life for r in self._tasks.values()), *self._background]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def remove_all(self) -> None:
        """Stops and removes every task: the node leaves its swarm."""
        for task_id in list(self._tasks):
            self._remove(task_id)
        self._remove_orphans(set(self._tasks))
        await asyncio.gather(*self._background, return_exceptions=True)

    # ---- one task

    def _assign(self, task: pb.Task) -> None:
        running = self._tasks.get(task.id)
        if running is None:
            self._add(task)
            return
        machine = running.machine
        if task.desired_state > machine.desired:
            machine.desire(task.desired_state)
            self._note(machine)
        if task.status.state < machine.status.state:
            self._reporter.report(task.id, machine.status)

    def _add(self, task: pb.Task) -> None:
        make_controller = functools.partial(self._runtime.controller, task, self._resources(task))
        machine = TaskMachine(
            task, make_controller, self._reachability, now=self._now, changed=self._status_changed
        )
        was_started = pb.TASK_STATE_STARTING <= task.status.state <= pb.TASK_STATE_RUNNING
        is_here = task.id in self._leftovers
        self._leftovers.discard(task.id)
        life = asyncio.create_task(machine.run()) if is_here or not was_started else _nothing()
        self._tasks[task.id] = _Running(machine, life)
        if was_started and not is_here:
            machine.lost()
        else:
            self._note(machine)

    def _remove(self, task_id: str) -> None:
        running = self._tasks.get(task_id)
        if running is not None and task_id not in self._removing:
            self._removing.add(task_id)
            self._in_background(self._remove_task(task_id, running))

    async def _remove_task(self, task_id: str, running: _Running) -> None:
        running.machine.desire(pb.TASK_STATE_REMOVE)
        await asyncio.gather(running.life, return_exceptions=True)
        await running.machine.remove()
        self._journal.remove(task_id)
        self._reporter.forget(task_id)
        self._removing.discard(task_id)
        self._tasks.pop(task_id, None)

    def _status_changed(self, machine: TaskMachine) -> None:
        self._reporter.report(machine.task.id, machine.status)
        if machine.status.state >= pb.TASK_STATE_STARTING:
            self._note(machine)

    def _note(self, machine: TaskMachine) -> None:
        task = pb.Task()
        task.CopyFrom(machine.task)
        task.status.CopyFrom(machine.status)
        task.desired_state = machine.desired
        self._journal.put(task)

    def _resources(self, task: pb.Task) -> TaskResources:
        container = task.spec.container_spec
        secret_ids = {reference.secret_id for reference in container.secrets}
        config_ids = {reference.config_id for reference in container.configs}
        return TaskResources(
            secrets={i: self._secrets[i] for i in secret_ids & self._secrets.keys()},
            configs={i: self._configs[i] for i in config_ids & self._configs.keys()},
            node_id=self._node_id,
            node_hostname=self._hostname,
        )

    # ---- what nobody wants

    def _remove_orphans(self, wanted: set[str]) -> None:
        """Once per daemon: later, whatever is on the node has a machine."""
        if self._orphans_removed:
            return
        self._orphans_removed = True
        for task in self._journal.load():
            if task.id not in wanted:
                self._journal.remove(task.id)
        for task_id in sorted(self._leftovers - wanted):
            self._in_background(self._remove_orphan(task_id))
        self._leftovers.clear()

    async def _remove_orphan(self, task_id: str) -> None:
        for _ in range(LEFTOVER_ATTEMPTS):
            try:
                await self._runtime.remove_leftover(task_id)
            except Exception as error:
                log.warning("could not remove what is left of a task", task=task_id, error=str(error))
                await asyncio.sleep(LEFTOVER_RETRY_SECONDS)
                continue
            log.info("removed what was left of a task", task=task_id)
            return

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _nothing() -> asyncio.Task[None]:
    return asyncio.create_task(asyncio.sleep(0))


def _update(mine: dict[str, Any], removed: Sequence[str], added: dict[str, Any]) -> None:
    """Removals first: one message may take something away and bring it back."""
    for object_id in removed:
        mine.pop(object_id, None)
    mine.update(added)
