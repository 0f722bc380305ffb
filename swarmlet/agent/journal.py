"""Which tasks this node has, remembered across restarts of the daemon.

One file per task, replaced atomically. Not synced: it has to survive the daemon, not
the host, since the tasks do not survive that either. What is secret is never written:
tasks refer to secrets by id, and the registry's credentials are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import structlog
from google.protobuf.message import DecodeError

from swarmlet.api import pb

_SUFFIX = ".task"

log = structlog.get_logger(__name__)


class TaskJournal(Protocol):
    """Small and fast enough to be called on the event loop."""

    def load(self) -> list[pb.Task]: ...

    def put(self, task: pb.Task) -> None: ...

    def remove(self, task_id: str) -> None: ...


class FileJournal:
    """A directory of files, each one task with its desired and its last observed state."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def load(self) -> list[pb.Task]:
        """The tasks as they were last put. A file that cannot be read is left aside, loudly."""
        tasks = []
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            try:
                task = pb.Task.FromString(path.read_bytes())
            except (OSError, DecodeError) as error:
                log.error("cannot read what is known of a task", path=str(path), error=str(error))
                continue
            if task.id + _SUFFIX == path.name:
                tasks.append(task)
            else:
                log.error("cannot read what is known of a task", path=str(path), error="wrong content")
        return tasks

    def put(self, task: pb.Task) -> None:
        path = self._path(task.id)
        fresh = path.with_suffix(".new")
        try:
            fresh.write_bytes(without_secrets(task).SerializeToString())
            fresh.replace(path)
        except OSError as error:
            # The task can run all the same; after a restart the manager has to name it again.
            log.error("cannot note a task", path=str(path), error=str(error))

    def remove(self, task_id: str) -> None:
        try:
            self._path(task_id).unlink(missing_ok=True)
        except OSError as error:
            log.error("cannot forget a task", task=task_id, error=str(error))

    def _path(self, task_id: str) -> Path:
        return self._directory / f"{task_id}{_SUFFIX}"


class MemoryJournal:
    """For simulations: survives an agent, not the process."""

    def __init__(self) -> None:
        self._tasks: dict[str, pb.Task] = {}

    def load(self) -> list[pb.Task]:
        return list(self._tasks.values())

    def put(self, task: pb.Task) -> None:
        self._tasks[task.id] = without_secrets(task)

    def remove(self, task_id: str) -> None:
        self._tasks.pop(task_id, None)


def without_secrets(task: pb.Task) -> pb.Task:
    """A copy that may be written to a disk."""
    copy = pb.Task()
    copy.CopyFrom(task)
    copy.spec.container_spec.ClearField("pull_auth")
    return copy
