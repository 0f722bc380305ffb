"""Limits of memory, CPU and number of processes by control groups, where the kernel lets us.

Called by the process runtime. Knows both versions of the hierarchy; without the right
to write there it says so once and limits nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import structlog

from swarmlet.api import pb

_log = structlog.get_logger(__name__)
_ROOT = Path("/sys/fs/cgroup")
_PARENT = "swarmlet"
_CPU_PERIOD_MICROSECONDS = 100_000


class ControlGroups:
    """One per runtime. Blocking calls: use it in a thread."""

    def __init__(self, owner: str, root: Path = _ROOT) -> None:
        self._owner = owner
        self._root = root
        self._warned = False

    def create(self, task_id: str, limits: pb.Resources) -> Sequence[Path]:
        """Makes the groups that `limits` need, one per hierarchy; none when nothing is limited."""
        settings = self._settings(limits)
        groups: list[Path] = []
        try:
            for controller, values in settings.items():
                group = self._group(controller, task_id)
                group.mkdir(parents=True, exist_ok=True)
                for name, value in values.items():
                    (group / name).write_text(value)
                if group not in groups:
                    groups.append(group)
        except OSError as error:
            if not self._warned:
                self._warned = True
                _log.warning("limits are not enforced: no control group can be made", error=str(error))
            self.remove(task_id)
            return []
        return groups

    def remove(self, task_id: str) -> None:
        """Removes the task's groups, which hold no process any more, and parents that are empty."""
        for controller in ("memory", "cpu", "pids") if self._version == 1 else ("",):
            group = self._group(controller, task_id)
            for directory in (group, group.parent, group.parent.parent):
                try:
                    directory.rmdir()
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
                        _log.warning("cannot remove control group", path=str(directory), error=str(error))
                    if error.errno != errno.ENOENT:
                        break

    @property
    def _version(self) -> int:
        return 2 if (self._root / "cgroup.controllers").exists() else 1

    def _group(self, controller: str, task_id: str) -> Path:
        hierarchy = self._root if self._version == 2 else self._root / controller
        return hierarchy / _PARENT / self._owner / task_id

    def _settings(self, limits: pb.Resources) -> dict[str, dict[str, str]]:
        quota = str(limits.nano_cpus * _CPU_PERIOD_MICROSECONDS // 10**9)
        if self._version == 2:
            self._delegate()
            chosen = {
                "memory": {"memory.max": str(limits.memory_bytes)},
                "cpu": {"cpu.max": f"{quota} {_CPU_PERIOD_MICROSECONDS}"},
                "pids": {"pids.max": str(limits.pids)},
            }
        else:
            chosen = {
                "memory": {"memory.limit_in_bytes": str(limits.memory_bytes)},
                "cpu": {"cpu.cfs_period_us": str(_CPU_PERIOD_MICROSECONDS), "cpu.cfs_quota_us": quota},
                "pids": {"pids.max": str(limits.pids)},
            }
        wanted = {"memory": limits.memory_bytes, "cpu": limits.nano_cpus, "pids": limits.pids}
        return {name: values for name, values in chosen.items() if wanted[name] > 0}

    def _delegate(self) -> None:
        """Version 2 offers a controller to children only when every parent was told to."""
        owner = self._root / _PARENT / self._owner
        try:
            owner.mkdir(parents=True, exist_ok=True)
            for directory in (self._root, owner.parent, owner):
                (directory / "cgroup.subtree_control").write_text("+memory +cpu +pids")
        except OSError as error:
            _log.debug("cannot delegate control groups", error=str(error))
