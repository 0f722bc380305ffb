"""The endpoint table as a node uses it: which published port leads to which backends. Pure.

Made from the `ServiceEndpoints` that the dispatcher sends to every node. Knows no
sockets; the proxy (and later the kernel's balancers) makes it true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from swarmlet.api import pb
from swarmlet.api.pb import PortProtocol


class Backend(NamedTuple):
    """Where one task answers one port."""

    task_id: str
    host: str
    port: int


class PublishedPort(NamedTuple):
    protocol: PortProtocol.ValueType
    number: int

    def __str__(self) -> str:
        return f"{self.number}/{pb.PortProtocol.Name(self.protocol).rpartition('_')[2].lower()}"


@dataclass(frozen=True)
class Route:
    """The backends of one published port."""

    service_name: str = ""
    active: tuple[Backend, ...] = ()
    """Take new connections."""
    draining: frozenset[Backend] = field(default=frozenset())
    """Still serve the connections that they hold."""


def routes_of(services: Iterable[pb.ServiceEndpoints]) -> dict[PublishedPort, Route]:
    """A route per published ingress port, also for those that nobody serves at the moment."""
    routes: dict[PublishedPort, Route] = {}
    for service in services:
        for port in service.ports:
            if port.publish_mode == pb.PUBLISH_MODE_INGRESS and port.published_port:
                published = PublishedPort(port.protocol, port.published_port)
                routes[published] = _route(service, published)
    return routes


def _route(service: pb.ServiceEndpoints, published: PublishedPort) -> Route:
    active: list[Backend] = []
    draining: list[Backend] = []
    for endpoint in service.endpoints:
        backend = _backend(endpoint, endpoint.ports or service.ports, published)
        if backend is not None:
            (active if endpoint.state == pb.ENDPOINT_STATE_ACTIVE else draining).append(backend)
    return Route(service.service_name, tuple(active), frozenset(draining))


def _backend(
    endpoint: pb.TaskEndpoint, ports: Sequence[pb.PortConfig], published: PublishedPort
) -> Backend | None:
    targets = {
        port.target_port
        for port in ports
        if (port.protocol, port.published_port) == published and port.publish_mode == pb.PUBLISH_MODE_INGRESS
    }
    for address in endpoint.addresses:
        if address.protocol == published.protocol and address.target_port in targets:
            return Backend(endpoint.task_id, address.address, address.port)
    return None
