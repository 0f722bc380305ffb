"""What a daemon is told at its start."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from swarmlet.api.errors import InvalidArgument
from swarmlet.raft.engine import RaftSettings

DEFAULT_PORT = 2377


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


def split_address(address: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Host and port of "host", "host:port", "[v6]" or "[v6]:port". Raises InvalidArgument."""
    host, port = address, ""
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        port = rest.removeprefix(":")
    elif address.count(":") == 1:
        host, _, port = address.partition(":")
    if not host:
        raise InvalidArgument(f"invalid address {address!r}: no host")
    if not port:
        return host, default_port
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"invalid address {address!r}: the port must be a number from 1 to 65535")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_unspecified(host: str) -> bool:
    """Whether `host` is 0.0.0.0 or ::, where one can listen but not call."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
