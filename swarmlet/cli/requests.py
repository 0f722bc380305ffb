"""Small things that several nouns say to a daemon in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from swarmlet.api import pb
from swarmlet.cli.client import Client, connect
from swarmlet.cli.command import CliError
from swarmlet.cli.options import GlobalOptions

AVAILABILITIES = {
    "active": pb.NODE_AVAILABILITY_ACTIVE,
    "pause": pb.NODE_AVAILABILITY_PAUSE,
    "drain": pb.NODE_AVAILABILITY_DRAIN,
}


def filters_of(texts: Iterable[str]) -> list[pb.Filter]:
    """`--filter KEY=VALUE`, values of one key together. Raises CliError for another form."""
    values: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise CliError(f'invalid filter "{text}": want KEY=VALUE')
        values.setdefault(key.strip().lower(), []).append(value.strip())
    return [pb.Filter(key=key, values=found) for key, found in values.items()]


def availability_of(text: str) -> pb.NodeAvailability.ValueType:
    found = AVAILABILITIES.get(text.lower())
    if found is None:
        raise CliError(f'invalid availability "{text}", only active, pause and drain are supported')
    return found


def get_service(client: Client, reference: str) -> pb.Service:
    return client.read(client.control.GetService, pb.GetServiceRequest(reference=reference)).service


def get_node(client: Client, reference: str) -> pb.Node:
    return client.read(client.control.GetNode, pb.GetNodeRequest(reference=reference)).node


def for_each(references: Iterable[str], act: Callable[[str], None]) -> None:
    """Acts on all of them, also when one fails; raises one CliError with every failure."""
    errors = []
    for reference in references:
        try:
            act(reference)
        except CliError as error:
            errors.append(str(error))
    if errors:
        raise CliError("\n".join(errors))


def complete_services(ctx: click.Context, text: str) -> list[str]:
    """Names for the shell; none when there is no daemon to ask."""
    return _complete(
        ctx,
        text,
        lambda c: [s.spec.name for s in c.read(c.control.ListServices, pb.ListServicesRequest()).services],
    )


def complete_nodes(ctx: click.Context, text: str) -> list[str]:
    return _complete(
        ctx,
        text,
        lambda c: [n.description.hostname for n in c.read(c.control.ListNodes, pb.ListNodesRequest()).nodes],
    )


def _complete(ctx: click.Context, text: str, names: Callable[[Client], list[str]]) -> list[str]:
    given = ctx.find_root().params.get("host")
    try:
        with connect(GlobalOptions(host=given or "", timeout_seconds=2, stale=True)) as client:
            return sorted(name for name in names(client) if name.startswith(text))
    except CliError:
        return []
