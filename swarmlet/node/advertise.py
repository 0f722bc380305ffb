"""Which address this node tells the others."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import psutil

from swarmlet.api.addresses import is_unspecified, join_address, split_address
from swarmlet.api.errors import InvalidArgument


def advertise_address(requested: str, listen_addr: str) -> str:
    """IP:PORT for others to call, as Docker decides it.

    `requested` is an IP, IP:PORT or an interface; without it the listen address, and
    for a listen address of all interfaces the machine's only address. Raises
    InvalidArgument when the choice is not clear, naming the candidates.
    """
    listen_host, port = split_address(listen_addr)
    if requested:
        interface = _address_of_interface(requested)
        if interface is not None:
            return join_address(interface, port)
        host, port = split_address(requested, port)
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise InvalidArgument(
                "advertise address must be a non-zero IP address or network interface "
                "(with optional port number)"
            ) from None
        if is_unspecified(host):
            raise InvalidArgument("advertise address must be a non-zero IP address")
        return join_address(host, port)
    if not is_unspecified(listen_host):
        return join_address(listen_host, port)
    candidates = _host_addresses()
    if not candidates:
        raise InvalidArgument(
            "could not find a system IP address to advertise - specify one with --advertise-addr"
        )
    if len(candidates) > 1:
        found = ", ".join(f"{ip} on interface {name}" for name, ip in candidates)
        raise InvalidArgument(
            "could not choose an IP address to advertise since this system has multiple addresses "
            f"({found}) - specify one with --advertise-addr"
        )
    return join_address(candidates[0][1], port)


def _address_of_interface(name: str) -> str | None:
    return next((ip for interface, ip in _ipv4_addresses() if interface == name), None)


def _host_addresses() -> list[tuple[str, str]]:
    """IPv4 addresses that others may reach: no loopback, nothing of a container engine."""
    return [
        (name, ip)
        for name, ip in _ipv4_addresses()
        if not ipaddress.IPv4Address(ip).is_loopback and not name.startswith(("docker", "veth", "br-"))
    ]


def _ipv4_addresses() -> Iterator[tuple[str, str]]:
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if ipv4 := _ipv4(str(address.address)):
                yield name, ipv4


def _ipv4(text: str) -> str:
    """The address if it is one of IPv4; interfaces also have hardware and IPv6 addresses."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        return ""
