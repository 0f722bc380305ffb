"""Reading and writing addresses as users and peers do."""

from __future__ import annotations

import ipaddress
import re

from swarmlet.api.errors import InvalidArgument

DEFAULT_PORT = 2377
"""Docker's cluster management port: mutual TLS here. Joining nodes call the port after it."""

_HOST = re.compile(r"[A-Za-z0-9._%:-]+")


def split_address(address: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Host and port of HOST, HOST:PORT, IPv6, [IPv6] or [IPv6]:PORT. Raises InvalidArgument."""
    host, port = _parts(address.strip())
    is_port = not port or (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535)
    if not _HOST.fullmatch(host) or not is_port:
        raise InvalidArgument(
            f"invalid address {address!r}: expected HOST:PORT with a port from 1 to 65535, "
            f"such as 10.0.0.1:{DEFAULT_PORT}"
        )
    return host, int(port) if port else default_port


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: str) -> str:
    """The host of an address that was checked before; as it is where there is no port."""
    return _parts(address)[0]


def is_unspecified(host: str) -> bool:
    """Whether `host` is 0.0.0.0 or ::, where one can listen but not call."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _parts(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        return (host, rest.removeprefix(":")) if closed and rest[:1] in ("", ":") else ("", "")
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        # "host:" has a port that is wrong, not none.
        return host, port or "?"
    return text, ""
