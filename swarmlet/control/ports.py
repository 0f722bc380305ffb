"""Whether a service's published ports are free in the cluster.

A routed (ingress) port is the cluster's; a host port is only the node's, so services
may share one and the scheduler keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument
from swarmlet.store.tables import Tables

_Port = tuple[int, int]


def check_ports(view: Tables, spec: pb.ServiceSpec, *, service_id: str) -> None:
    """Raises InvalidArgument, naming the service that has a port which `service_id` wants."""
    routed = _ports(spec.endpoint_spec.ports, pb.PUBLISH_MODE_INGRESS)
    on_host = _ports(spec.endpoint_spec.ports, pb.PUBLISH_MODE_HOST)
    if not routed and not on_host:
        return
    for other in view.services:
        if other.id == service_id:
            continue
        # Both what it asked for and what it was given: a port chosen by the cluster is only in the second.
        for port in (*other.spec.endpoint_spec.ports, *other.endpoint.ports):
            _check_port(port, other, routed, on_host)


def _check_port(port: pb.PortConfig, holder: pb.Service, routed: set[_Port], on_host: set[_Port]) -> None:
    key = (port.protocol, port.published_port)
    if port.publish_mode == pb.PUBLISH_MODE_HOST:
        taken, word = key in routed, "a host-published port"
    else:
        taken, word = key in routed or key in on_host, "an ingress port"
    if taken:
        raise InvalidArgument(
            f"port '{port.published_port}' is already in use "
            f"by service '{holder.spec.name}' ({holder.id}) as {word}"
        )


def _ports(ports: Iterable[pb.PortConfig], mode: pb.PublishMode.ValueType) -> set[_Port]:
    return {(p.protocol, p.published_port) for p in ports if p.published_port and p.publish_mode == mode}
