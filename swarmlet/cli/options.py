"""What holds for every command: where the daemon is, and how long to try."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GlobalOptions:
    host: str
    timeout_seconds: float
    is_patient: bool = False
    """Whether the user said himself how long to try, also when it looks hopeless."""
    stale: bool = False
    """Whether reads show this manager's own view, which may be old, without asking the leader."""


def default_socket() -> Path:
    """Where a daemon of this user listens."""
    if os.geteuid() == 0:
        return Path("/run/swarmlet/swarmlet.sock")
    # Never below /tmp: somebody else could listen there first.
    return Path(os.environ.get("XDG_RUNTIME_DIR") or default_state_dir()) / "swarmlet.sock"


def default_state_dir() -> Path:
    if os.geteuid() != 0:
        return Path.home() / ".local" / "state" / "swarmlet"
    return Path("/var/lib/swarmlet")
