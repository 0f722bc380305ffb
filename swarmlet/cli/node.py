"""`swarmlet node`: list, inspect, label, drain, promote and remove the nodes of the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from swarmlet.cli.command import BoolFlag, CliError, Command, Group
from swarmlet.cli.formatting import FORMAT_HELP, inspect, pretty_word, write_rows
from swarmlet.cli.options import GlobalOptions
from swarmlet.cli.values import natural_key

_HEADERS = {
    "ID": "ID",
    "Self": "",
    "Hostname": "HOSTNAME",
    "Status": "STATUS",
    "Availability": "AVAILABILITY",
    "ManagerStatus": "MANAGER STATUS",
    "EngineVersion": "ENGINE VERSION",
    "TLSStatus": "TLS STATUS",
}
_TABLE = (
    "{{.ID}} {{if .Self}}*{{else}} {{ end }}\\t{{.Hostname}}\\t{{.Status}}"
    "\\t{{.Availability}}\\t{{.ManagerStatus}}\\t{{.EngineVersion}}"
)


def _complete(ctx: click.Context, text: str) -> list[str]:
    from swarmlet.cli.requests import complete_nodes

    return complete_nodes(ctx, text)


@click.group("node", cls=Group)
def node() -> None:
    """Manage Swarm nodes"""


@node.command("ls", cls=Command, aliases=("list",))
@click.option(
    "-f", "--filter", "filters", multiple=True, metavar="filter", help="Filter output based on conditions"
)
@click.option("--format", "template", metavar="string", help=FORMAT_HELP)
@BoolFlag.option("-q", "--quiet", help="Only display IDs")
@click.pass_obj
def ls(options: GlobalOptions, filters: tuple[str, ...], template: str | None, quiet: bool | None) -> None:
    """List nodes in the swarm"""
    from swarmlet.api import pb
    from swarmlet.cli.client import connect
    from swarmlet.cli.requests import filters_of

    with connect(options) as client:
        nodes = client.read(client.control.ListNodes, pb.ListNodesRequest(filters=filters_of(filters))).nodes
        own_id = client.read(client.local.Info, pb.SwarmInfoRequest()).node_id
        cluster = client.read(client.control.GetCluster, pb.GetClusterRequest()).cluster
    rows = [
        {
            "ID": found.id,
            "Self": found.id == own_id,
            "Hostname": found.description.hostname,
            "Status": _word(pb.NodeState.Name(found.status.state), "NODE_STATE_"),
            "Availability": _word(pb.NodeAvailability.Name(found.spec.availability), "NODE_AVAILABILITY_"),
            "ManagerStatus": _manager_status(found),
            "EngineVersion": found.description.engine.engine_version,
            "TLSStatus": _tls_status(found.description.tls_info, cluster.tls_info),
        }
        for found in sorted(nodes, key=lambda n: (natural_key(n.description.hostname), n.id))
    ]
    write_rows(rows, headers=_HEADERS, default=_TABLE, template=template, quiet=bool(quiet))


def _word(name: str, prefix: str) -> str:
    return pretty_word(name.removeprefix(prefix))


def _manager_status(found: Any) -> str:
    from swarmlet.api import pb

    if not found.HasField("manager_status"):
        return ""
    if found.manager_status.leader:
        return "Leader"
    return _word(pb.Reachability.Name(found.manager_status.reachability), "REACHABILITY_")


def _tls_status(own: Any, wanted: Any) -> str:
    if not own.trust_root or not wanted.trust_root:
        return "Unknown"
    return "Ready" if own == wanted else "Needs Rotation"


@node.command("ps", cls=Command, usage="[OPTIONS] [NODE...]", arity=(0, None), completes=_complete)
@click.option(
    "-f", "--filter", "filters", multiple=True, metavar="filter", help="Filter output based on conditions"
)
@click.option("--format", "template", metavar="string", help="Pretty-print tasks using a Go template")
@BoolFlag.option("--no-resolve", help="Do not map IDs to Names")
@BoolFlag.option("--no-trunc", help="Do not truncate output")
@BoolFlag.option("-q", "--quiet", help="Only display task IDs")
@click.pass_obj
def ps(
    options: GlobalOptions,
    args: tuple[str, ...],
    filters: tuple[str, ...],
    template: str | None,
    no_resolve: bool | None,
    no_trunc: bool | None,
    quiet: bool | None,
) -> None:
    """List tasks running on one or more nodes, defaults to current node"""
    from swarmlet.api import pb
    from swarmlet.cli.client import connect
    from swarmlet.cli.requests import filters_of, get_node
    from swarmlet.cli.tasks import Names, write_tasks

    with connect(options) as client:
        ids, errors = [], []
        for reference in args or ("self",):
            try:
                ids.append(get_node(client, reference).id)
            except CliError as error:
                errors.append(str(error))
        if ids:
            wanted = [*filters_of(filters), pb.Filter(key="node", values=ids)]
            tasks = client.read(client.control.ListTasks, pb.ListTasksRequest(filters=wanted)).tasks
            names = Names.unresolved() if no_resolve else Names.fetch(client)
            write_tasks(tasks, names, template=template, truncate=not no_trunc, quiet=bool(quiet))
    if errors:
        raise CliError("\n".join(errors))


@node.command(
    "inspect", cls=Command, usage="[OPTIONS] self|NODE [NODE...]", arity=(1, None), completes=_complete
)
@click.option("-f", "--format", "template", metavar="string", help="'json' or a Go template")
@BoolFlag.option("--pretty", help="Print the information in a human friendly format")
@click.pass_obj
def inspect_node(
    options: GlobalOptions, args: tuple[str, ...], template: str | None, pretty: bool | None
) -> None:
    """Display detailed information on one or more nodes"""
    from swarmlet.cli.client import connect
    from swarmlet.cli.requests import for_each, get_node

    if pretty and template:
        raise CliError("--format is incompatible with human friendly format")
    with connect(options) as client:
        if pretty:
            from swarmlet.cli.pretty import pretty_node

            for_each(args, lambda reference: click.echo(pretty_node(get_node(client, reference))))
        else:
            inspect(args, template, lambda reference: get_node(client, reference))


@node.command("update", cls=Command, usage="[OPTIONS] NODE", arity=(1, 1), completes=_complete)
@click.option(
    "--availability", metavar="string", help='Availability of the node ("active", "pause", "drain")'
)
@click.option("--label-add", multiple=True, metavar="list", help='Add or update a node label ("key=value")')
@click.option("--label-rm", multiple=True, metavar="list", help="Remove a node label if exists")
@click.option("--role", metavar="string", help='Role of the node ("worker", "manager")')
@click.pass_obj
def update(
    options: GlobalOptions,
    args: tuple[str, ...],
    availability: str | None,
    label_add: tuple[str, ...],
    label_rm: tuple[str, ...],
    role: str | None,
) -> None:
    """Update a node"""
    from swarmlet.api import pb
    from swarmlet.cli.client import connect
    from swarmlet.cli.requests import availability_of

    roles = {"worker": pb.NODE_ROLE_WORKER, "manager": pb.NODE_ROLE_MANAGER}
    if role is not None and role.lower() not in roles:
        raise CliError(f'invalid role "{role}", only worker and manager are supported')

    def edit(found: pb.Node) -> None:
        spec = found.spec
        if role is not None:
            spec.role = roles[role.lower()]
        if availability is not None:
            spec.availability = availability_of(availability)
        for label in label_add:
            key, _, value = label.partition("=")
            spec.labels[key] = value
        for key in label_rm:
            if key not in spec.labels:
                raise CliError(f"key {key} doesn't exist in node's labels")
            del spec.labels[key]

    with connect(options) as client:
        _change(client, args[0], edit)
    click.echo(args[0])


@node.command("promote", cls=Command, usage="NODE [NODE...]", arity=(1, None), completes=_complete)
@click.pass_obj
def promote(options: GlobalOptions, args: tuple[str, ...]) -> None:
    """Promote one or more nodes to manager in the swarm"""
    from swarmlet.api import pb

    _set_role(options, args, pb.NODE_ROLE_MANAGER, "already a manager", "promoted to a manager in the swarm")


@node.command("demote", cls=Command, usage="NODE [NODE...]", arity=(1, None), completes=_complete)
@click.pass_obj
def demote(options: GlobalOptions, args: tuple[str, ...]) -> None:
    """Demote one or more nodes from manager in the swarm"""
    from swarmlet.api import pb

    _set_role(options, args, pb.NODE_ROLE_WORKER, "already a worker", "demoted in the swarm")


class _Unchanged(Exception):
    """The node is already what was asked for."""


def _set_role(
    options: GlobalOptions, references: tuple[str, ...], role: Any, already: str, done: str
) -> None:
    from swarmlet.cli.client import connect
    from swarmlet.cli.requests import for_each

    def edit(found: Any) -> None:
        if found.spec.role == role:
            raise _Unchanged(found.id)
        found.spec.role = role

    with connect(options) as client:

        def set_role(reference: str) -> None:
            try:
                _change(client, reference, edit)
            except _Unchanged as unchanged:
                click.echo(f"Node {unchanged} is {already}.")
            else:
                suffix = "Manager " if done.startswith("demoted") else "Node "
                click.echo(f"{suffix}{reference} {done}.")

        for_each(references, set_role)


def _change(client: Any, reference: str, edit: Callable[[Any], None]) -> None:
    """Reads the node, edits it and writes its spec back; again when somebody else wrote in between."""
    from swarmlet.api import pb
    from swarmlet.cli.requests import get_node

    def attempt() -> None:
        current = get_node(client, reference)
        edit(current)
        request = pb.UpdateNodeRequest(node_id=current.id, version=current.version.index, spec=current.spec)
        client.write(client.control.UpdateNode, request)

    client.until_current(attempt)


@node.command(
    "rm",
    cls=Command,
    aliases=("remove",),
    usage="[OPTIONS] NODE [NODE...]",
    arity=(1, None),
    completes=_complete,
)
@BoolFlag.option("-f", "--force", help="Force remove a node from the swarm")
@click.pass_obj
def rm(options: GlobalOptions, args: tuple[str, ...], force: bool | None) -> None:
    """Remove one or more nodes from the swarm"""
    from swarmlet.api import pb
    from swarmlet.cli.client import connect
    from swarmlet.cli.requests import for_each, get_node

    with connect(options) as client:

        def remove(reference: str) -> None:
            request = pb.RemoveNodeRequest(node_id=get_node(client, reference).id, force=bool(force))
            client.write(client.control.RemoveNode, request)
            click.echo(reference)

        for_each(args, remove)
