"""Secrets and configs of a task as files that exist in memory only.

Called by the runtimes while they prepare and remove a task. Files live below one
directory per owner and task on a memory-backed file system; their data is never
written to a disk and never logged.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from swarmlet.api import pb
from swarmlet.runtime.base import TaskRejected, TaskResources

_DEFAULT_MODE = 0o444


@dataclass(frozen=True)
class TaskFile:
    """One secret or config, and where the task expects it."""

    path: Path
    """On this host."""
    target: PurePosixPath
    """In a container."""


class TaskFiles:
    """The files of all tasks of one owner. Blocking calls: use it in a thread."""

    def __init__(self, owner: str, base: Path | None = None) -> None:
        # Hashed: an owner may be a path, and the name of a directory is all we need.
        name = hashlib.sha256(owner.encode()).hexdigest()[:16]
        self._base = base
        self._name = f"swarmlet-{os.getuid()}-{name}"

    def create(
        self,
        task: pb.Task,
        resources: TaskResources,
        *,
        owner_ids: tuple[int, int] | None = None,
        relative: bool = False,
    ) -> list[TaskFile]:
        """Writes the files anew. Raises TaskRejected for data the node was not given, or without a tmpfs.

        `owner_ids` (uid, gid) own the files whose reference names nobody. `relative` keeps the
        target's path below the directory, for tasks that have no file system of their own.
        """
        spec = task.spec.container_spec
        if not spec.secrets and not spec.configs:
            return []
        root = self._directory()
        directory = root / task.id
        shutil.rmtree(directory, ignore_errors=True)
        root.mkdir(mode=0o700, exist_ok=True)
        if owner_ids is not None and os.getuid() == 0:
            root.chmod(0o711)  # that user must be able to pass, not to list
        directory.mkdir(mode=0o700)
        files = []
        for number, (reference, target, data) in enumerate(_wanted(spec, resources)):
            inside = PurePosixPath(*target.parts[1:]) if relative else PurePosixPath(str(number))
            if relative:
                inside = PurePosixPath(
                    "secrets" if isinstance(reference, pb.SecretReference) else "configs"
                ) / (target.name if isinstance(reference, pb.SecretReference) else inside)
            path = directory / inside
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _write(path, data, reference.file, owner_ids)
            files.append(TaskFile(path, target))
        if owner_ids is not None and os.getuid() == 0:
            os.chown(directory, *owner_ids)
        return files

    def directory_of(self, task_id: str) -> Path | None:
        """Where the task's files are; None when it has none."""
        for base in self._candidates():
            if (base / self._name / task_id).is_dir():
                return base / self._name / task_id
        return None

    def remove(self, task_id: str) -> None:
        """Removes the task's files, and the owner's directory with the last of them."""
        directory = self.directory_of(task_id)
        if directory is None:
            return
        shutil.rmtree(directory, ignore_errors=True)
        try:
            directory.parent.rmdir()
        except OSError:
            return  # other tasks still have files

    def _directory(self) -> Path:
        for base in self._candidates():
            if base.is_dir() and os.access(base, os.W_OK | os.X_OK):
                return base / self._name
        raise TaskRejected(
            "secrets and configs need a memory-backed directory: "
            "make /dev/shm writable or set $XDG_RUNTIME_DIR to one that is"
        )

    def _candidates(self) -> list[Path]:
        if self._base is not None:
            return [self._base]
        runtime_directory = os.environ.get("XDG_RUNTIME_DIR")
        return [Path("/dev/shm"), *([Path(runtime_directory)] if runtime_directory else [])]


def _wanted(
    spec: pb.ContainerSpec, resources: TaskResources
) -> Iterator[tuple[pb.SecretReference | pb.ConfigReference, PurePosixPath, bytes]]:
    for secret in spec.secrets:
        if secret.secret_id not in resources.secrets:
            raise TaskRejected(f"secret {secret.secret_name} was not given to this node")
        target = PurePosixPath("/run/secrets") / (secret.file.name or secret.secret_name)
        yield secret, _checked(target), resources.secrets[secret.secret_id].spec.data
    for config in spec.configs:
        if config.config_id not in resources.configs:
            raise TaskRejected(f"config {config.config_name} was not given to this node")
        target = PurePosixPath("/") / (config.file.name or config.config_name)
        yield config, _checked(target), resources.configs[config.config_id].spec.data


def _checked(target: PurePosixPath) -> PurePosixPath:
    if ".." in target.parts:
        raise TaskRejected(f"invalid target {target} of a secret or config: it must not contain '..'")
    return target


def _write(path: Path, data: bytes, file: pb.FileTarget, owner_ids: tuple[int, int] | None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        if os.getuid() == 0:
            uid, gid = owner_ids or (0, 0)
            os.fchown(stream.fileno(), _number(file.uid, uid), _number(file.gid, gid))
        os.fchmod(stream.fileno(), (file.mode & 0o7777) or _DEFAULT_MODE)


def _number(text: str, default: int) -> int:
    if not text:
        return default
    if not text.isdecimal():
        raise TaskRejected(f"invalid owner {text!r} of a secret or config: give a numeric uid and gid")
    return int(text)
