"""What a daemon is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from swarmlet.api.addresses import DEFAULT_PORT
from swarmlet.raft.engine import RaftSettings


@dataclass(frozen=True)
class DaemonConfig:
    state_dir: Path
    socket: Path
    listen_addr: str = f"0.0.0.0:{DEFAULT_PORT}"
    """IP:PORT of the mutual-TLS listener; joiners use the port after it."""
    advertise_addr: str = ""
    """How other nodes reach this one: IP, IP:PORT or an interface name; empty: chosen at init or join."""
    runtime: str = "auto"
    docker_host: str = ""
    hostname: str = ""
    log_level: str = "info"
    log_format: str = "text"
    raft: RaftSettings = field(default_factory=RaftSettings)
