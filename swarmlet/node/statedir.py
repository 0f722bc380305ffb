"""The state directory of a daemon: who may use it, and what is where.

lock           held while a daemon runs
node.json      the swarm this node is in (absent: none)
certificates/  its identity
raft/          the managers' log and snapshot
raft.before/   the same, of a group that another one, made anew from one manager, replaced
worker/        the agent's tasks
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from swarmlet.api.errors import FailedPrecondition
from swarmlet.raft.files import replace_file, sync_directory


@dataclass(frozen=True)
class Membership:
    """What a node must know to find its swarm again."""

    node_id: str
    cluster_id: str
    advertise_addr: str
    managers: Sequence[str] = field(default_factory=tuple)
    """Last known mutual-TLS addresses of managers."""


class StateDir:
    """One daemon's directory. Blocking calls, all short."""

    def __init__(self, path: Path) -> None:
        """Takes the directory for this process. Raises FailedPrecondition when it is taken or unusable."""
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FailedPrecondition(f"cannot use the state directory {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise FailedPrecondition(
                f"the state directory {path} is in use by another swarmlet daemon; "
                "give each daemon its own with --state-dir"
            ) from None

    @property
    def certificates(self) -> Path:
        return self.path / "certificates"

    @property
    def raft(self) -> Path:
        return self.path / "raft"

    @property
    def worker(self) -> Path:
        return self.path / "worker"

    def membership(self) -> Membership | None:
        """The swarm this node is in; None when in none. Raises FailedPrecondition for a damaged file."""
        path = self.path / "node.json"
        try:
            values = json.loads(path.read_text())
            return Membership(**{**values, "managers": tuple(values["managers"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FailedPrecondition(
                f"{path} is damaged ({error}); restore it from a backup, or remove the state directory "
                "and let this node join again"
            ) from error

    def save_membership(self, membership: Membership) -> None:
        replace_file(self.path / "node.json", [json.dumps(asdict(membership), indent=1).encode()])

    def forget_swarm(self) -> None:
        """Removes everything of the swarm; node.json first, so that a crash leaves a node in no swarm."""
        (self.path / "node.json").unlink(missing_ok=True)
        for directory in (self.certificates, self.raft, self.path / "raft.before", self.worker):
            shutil.rmtree(directory, ignore_errors=True)

    def forget_raft(self, *, keep_aside: bool) -> None:
        """Makes room for another life as a manager.

        `keep_aside` when a group that was made anew from another manager voted this one
        out: only these files may know what the old group had agreed on last.
        """
        aside = self.path / "raft.before"
        shutil.rmtree(aside, ignore_errors=True)
        if keep_aside and self.raft.exists():
            self.raft.rename(aside)
            sync_directory(self.path)
        shutil.rmtree(self.raft, ignore_errors=True)

    def close(self) -> None:
        os.close(self._lock)
