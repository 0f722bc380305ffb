"""`swarmlet swarm`: make a cluster, join one, leave it, and manage its tokens and settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from swarmlet.cli.command import BoolFlag, CliError, Command, Flag, Group
from swarmlet.cli.options import GlobalOptions
from swarmlet.cli.values import parse_int, parse_positive_duration

JOIN_SECONDS = 60.0
"""A join waits for the cluster to agree; it is not repeated by itself."""
TOKEN_VARIABLE = "SWARMLET_JOIN_TOKEN"

_DURATION = Flag("duration", parse_positive_duration)
_INT = Flag("int", parse_int)


@click.group("swarm", cls=Group)
def swarm() -> None:
    """Manage Swarm"""


@swarm.command("init", cls=Command)
@click.option(
    "--advertise-addr", metavar="string", help='Advertised address (format: "<ip|interface>[:port]")'
)
@click.option(
    "--availability",
    metavar="string",
    help='Availability of the node ("active", "pause", "drain") (default "active")',
)
@click.option(
    "--cert-expiry", type=_DURATION, help="Validity period of node certificates (default 2160h0m0s)"
)
@click.option("--dispatcher-heartbeat", type=_DURATION, help="Dispatcher heartbeat period (default 1s)")
@click.option("--task-history-limit", type=_INT, help="Task history retention limit (default 5)")
@BoolFlag.option("--force-new-cluster", help="Force create a new cluster from current state")
@click.pass_obj
def init(
    options: GlobalOptions,
    advertise_addr: str | None,
    availability: str | None,
    cert_expiry: int | None,
    dispatcher_heartbeat: int | None,
    task_history_limit: int | None,
    force_new_cluster: bool | None,
) -> None:
    """Initialize a swarm"""
    from swarmlet.api import pb
    from swarmlet.cli.client import connect
    from swarmlet.cli.requests import availability_of

    settings = (availability, cert_expiry, dispatcher_heartbeat, task_history_limit)
    if force_new_cluster and any(given is not None for given in settings):
        raise CliError(
            "--force-new-cluster keeps the settings of the cluster and of this node: of the other flags "
            'only --advertise-addr goes with it; use "swarmlet swarm update" afterwards'
        )
    request = pb.SwarmInitRequest(
        advertise_addr=advertise_addr or "",
        availability=availability_of(availability or "active"),
        force_new_cluster=bool(force_new_cluster),
        cert_expiry_ns=cert_expiry or 0,
        dispatcher_heartbeat_ns=dispatcher_heartbeat or 0,
        task_history_limit=task_history_limit,
    )
    with connect(options) as client:
        answer = client.once(client.local.Init, request)
    for warning in answer.warnings:
        click.echo(f"WARNING: {warning}", err=True)
    click.echo(f"Swarm initialized: current node ({answer.node_id}) is now a manager.\n")
    _print_join_command("worker", answer.worker_join_token, answer.join_address)
    click.echo(
        "To add a manager to this swarm, run 'swarmlet swarm join-token manager' and follow the instructions."
    )


def _print_join_command(role: str, token: str, address: str) -> None:
    click.echo(
        f"To add a {role} to this swarm, run the following command:\n\n"
        f"    swarmlet swarm join --token {token} {address}\n"
    )


@swarm.command("join", cls=Command, usage="[OPTIONS] HOST:PORT", arity=(1, 1))
@click.option(
    "--advertise-addr", metavar="string", help='Advertised address (format: "<ip|interface>[:port]")'
)
@click.option(
    "--availability",
    metavar="string",
    help='Availability of the node ("active", "pause", "drain") (default "active")',
)
@click.option(
    "--token",
    metavar="string",
    help=f"Token for entry into the swarm; '-' reads it from standard input (env {TOKEN_VARIABLE})",
)
@click.option(
    "--token-file", metavar="file", help="File that holds the token, to keep it out of the process list"
)
@click.pass_obj
def join(
    options: GlobalOptions,
    args: tuple[str, ...],
    advertise_addr: str | None,
    availability: str | None,
    token: str | None,
    token_file: str | None,
) -> None:
    """Join a swarm as a node and/or manager"""
    from swarmlet.api import pb
    from swarmlet.cli.client import connect
    from swarmlet.cli.requests import availability_of

    request = pb.SwarmJoinRequest(
        token=_token(token, token_file),
        remote_address=args[0],
        advertise_addr=advertise_addr or "",
        availability=availability_of(availability or "active"),
    )
    with connect(options) as client:
        answer = client.once(client.local.Join, request, max(JOIN_SECONDS, options.timeout_seconds))
    role = "manager" if answer.role == pb.NODE_ROLE_MANAGER else "worker"
    click.echo(f"This node joined a swarm as a {role}.")


def _token(token: str | None, token_file: str | None) -> str:
    if token and token_file:
        raise CliError("--token and --token-file cannot be used together")
    if token == "-":
        return sys.stdin.readline().strip()
    if token_file:
        try:
            return Path(token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"cannot read the token from {token_file}: {error}") from None
    return token or os.environ.get(TOKEN_VARIABLE, "").strip()


@swarm.command("join-token", cls=Command, usage="[OPTIONS] (worker|manager)", arity=(1, 1))
@BoolFlag.option("-q", "--quiet", help="Only display token")
@BoolFlag.option("--rotate", help="Rotate join token")
@click.pass_obj
def join_token(
    options: GlobalOptions, args: tuple[str, ...], quiet: bool | None, rotate: bool | None
) -> None:
    """Manage join tokens"""
    from swarmlet.api import pb
    from swarmlet.cli.client import connect
    from swarmlet.cli.requests import get_node

    role = args[0]
    if role not in ("worker", "manager"):
        raise CliError(f"unknown role {role}")
    with connect(options) as client:
        if rotate:
            cluster = _change_cluster(client, _as_it_is, rotate=role)
            if not quiet:
                click.echo(f"Successfully rotated {role} join token.\n")
        else:
            cluster = client.read(client.control.GetCluster, pb.GetClusterRequest()).cluster
        token = cluster.join_tokens.worker if role == "worker" else cluster.join_tokens.manager
        if quiet:
            click.echo(token)
        else:
            _print_join_command(role, token, get_node(client, "self").manager_status.addr)


def _as_it_is(_spec: Any) -> None:
    pass


def _change_cluster(client: Any, edit: Any, *, rotate: str = "") -> Any:
    from swarmlet.api import pb

    def attempt() -> pb.Cluster:
        cluster: pb.Cluster = client.read(client.control.GetCluster, pb.GetClusterRequest()).cluster
        edit(cluster.spec)
        request = pb.UpdateClusterRequest(
            version=cluster.version.index,
            spec=cluster.spec,
            rotate_worker_token=rotate == "worker",
            rotate_manager_token=rotate == "manager",
        )
        changed: pb.Cluster = client.write(client.control.UpdateCluster, request).cluster
        return changed

    return client.until_current(attempt)


@swarm.command("update", cls=Command)
@click.option("--cert-expiry", type=_DURATION, help="Validity period of node certificates")
@click.option("--dispatcher-heartbeat", type=_DURATION, help="Dispatcher heartbeat period")
@click.option("--task-history-limit", type=_INT, help="Task history retention limit")
@click.pass_context
def update(
    ctx: click.Context,
    cert_expiry: int | None,
    dispatcher_heartbeat: int | None,
    task_history_limit: int | None,
) -> None:
    """Update the swarm"""
    from swarmlet.cli.client import connect

    if cert_expiry is None and dispatcher_heartbeat is None and task_history_limit is None:
        click.echo(ctx.get_help())
        return

    def edit(spec: Any) -> None:
        if cert_expiry is not None:
            spec.ca_config.node_cert_expiry_ns = cert_expiry
        if dispatcher_heartbeat is not None:
            spec.dispatcher.heartbeat_period_ns = dispatcher_heartbeat
        if task_history_limit is not None:
            spec.orchestration.task_history_retention_limit = task_history_limit

    with connect(ctx.obj) as client:
        _change_cluster(client, edit)
    click.echo("Swarm updated.")


@swarm.command("leave", cls=Command)
@BoolFlag.option("-f", "--force", help="Force this node to leave the swarm, ignoring warnings")
@click.pass_obj
def leave(options: GlobalOptions, force: bool | None) -> None:
    """Leave the swarm"""
    from swarmlet.api import pb
    from swarmlet.cli.client import connect

    with connect(options) as client:
        client.once(client.local.Leave, pb.SwarmLeaveRequest(force=bool(force)))
    click.echo("Node left the swarm.")
