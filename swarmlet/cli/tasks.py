"""Tasks as `service ps` and `node ps` show them, and the names behind the ids in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from swarmlet.api import pb
from swarmlet.cli.formatting import pretty_word, write_rows
from swarmlet.cli.values import ellipsis, familiar_image, human_duration, natural_key, short_id

if TYPE_CHECKING:
    from swarmlet.cli.client import Client

_HEADERS = {
    "ID": "ID",
    "Name": "NAME",
    "Image": "IMAGE",
    "Node": "NODE",
    "DesiredState": "DESIRED STATE",
    "CurrentState": "CURRENT STATE",
    "Error": "ERROR",
    "Ports": "PORTS",
}
_TABLE = "\\t".join(f"{{{{.{name}}}}}" for name in _HEADERS)
_ERROR_WIDTH = 30


class Names:
    """Ids to names; an id that nothing is known of stays as it is."""

    def __init__(self, nodes: Mapping[str, str], services: Mapping[str, str]) -> None:
        self._nodes = nodes
        self._services = services

    @classmethod
    def fetch(cls, client: Client) -> Names:
        nodes = client.read(client.control.ListNodes, pb.ListNodesRequest()).nodes
        services = client.read(client.control.ListServices, pb.ListServicesRequest()).services
        return cls(
            {n.id: n.spec.name or n.description.hostname or n.id for n in nodes},
            {s.id: s.spec.name for s in services},
        )

    @classmethod
    def unresolved(cls) -> Names:
        return cls({}, {})

    def node(self, node_id: str) -> str:
        return self._nodes.get(node_id, node_id)

    def service(self, service_id: str) -> str:
        return self._services.get(service_id, service_id)

    def task(self, task: pb.Task) -> str:
        return f"{self.service(task.service_id)}.{task.slot or task.node_id}"


def write_tasks(
    tasks: Iterable[pb.Task],
    names: Names,
    *,
    template: str | None,
    truncate: bool,
    quiet: bool,
    now: datetime | None = None,
) -> None:
    """Sorted by service and slot, the newest first, its predecessors indented below it."""
    at = now or datetime.now(UTC)
    ordered = sorted(tasks, key=lambda t: (t.created_at.seconds, t.created_at.nanos), reverse=True)
    ordered.sort(key=lambda t: natural_key(names.task(t)))
    is_table = (template or "table").startswith("table")
    rows = []
    previous = ""
    for task in ordered:
        name = names.task(task)
        shown = f" \\_ {name}" if is_table and name == previous else name
        rows.append({**_row(task, names, truncate=truncate, now=at), "Name": shown})
        previous = name
    write_rows(rows, headers=_HEADERS, default=_TABLE, template=template, quiet=quiet)


def _row(task: pb.Task, names: Names, *, truncate: bool, now: datetime) -> dict[str, str]:
    image = task.spec.container_spec.image
    error = ellipsis(task.status.err, _ERROR_WIDTH) if truncate else task.status.err
    since = (now - task.status.timestamp.ToDatetime(tzinfo=UTC)).total_seconds()
    return {
        "ID": short_id(task.id) if truncate else task.id,
        "Image": familiar_image(image) if truncate else image,
        "Node": names.node(task.node_id),
        "DesiredState": pretty_word(state_word(task.desired_state)),
        "CurrentState": f"{pretty_word(state_word(task.status.state))} {human_duration(since).lower()} ago",
        "Error": f'"{error}"' if error else "",
        "Ports": ",".join(host_port(port) for port in task.status.port_status.ports),
    }


def state_word(state: pb.TaskState.ValueType) -> str:
    return pb.TaskState.Name(state).removeprefix("TASK_STATE_").lower()


def protocol_word(port: pb.PortConfig) -> str:
    return pb.PortProtocol.Name(port.protocol).removeprefix("PORT_PROTOCOL_").lower()


def host_port(port: pb.PortConfig) -> str:
    return f"*:{port.published_port}->{port.target_port}/{protocol_word(port)}"


def ingress_ports(ports: Sequence[pb.PortConfig]) -> str:
    """`*:8080->80/tcp`, neighbours joined to ranges as Docker does."""
    ranges: list[list[int]] = []
    ingress = [port for port in ports if port.publish_mode == pb.PUBLISH_MODE_INGRESS]
    for port in sorted(ingress, key=lambda p: (protocol_word(p), p.published_port)):
        last = ranges[-1] if ranges else None
        if last is not None and _continues(last, port):
            last[1], last[3] = port.published_port, port.target_port
        else:
            ranges.append(
                [port.published_port, port.published_port, port.target_port, port.target_port, port.protocol]
            )
    return ", ".join(
        f"*:{_span(first, last)}->{_span(target, target_last)}/"
        f"{protocol_word(pb.PortConfig(protocol=pb.PortProtocol.ValueType(protocol)))}"
        for first, last, target, target_last, protocol in ranges
    )


def _continues(last: Sequence[int], port: pb.PortConfig) -> bool:
    _, published, target_first, target, protocol = last
    one_target = port.target_port == target == target_first
    both_advance = port.target_port == target + 1 and (published - last[0]) == (target - target_first)
    return port.protocol == protocol and port.published_port == published + 1 and (one_target or both_advance)


def _span(first: int, last: int) -> str:
    return f"{first}-{last}" if last > first else str(first)
