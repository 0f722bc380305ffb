"""`swarmlet system`: what this daemon is, and ways to save its swarm and to bring it back."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from swarmlet.cli.command import BoolFlag, CliError, Command, Group
from swarmlet.cli.options import GlobalOptions, default_state_dir
from swarmlet.cli.template import Fields, Template

PASSPHRASE = "SWARMLET_BACKUP_PASSPHRASE"
TRANSFER_SECONDS = 600.0
"""For a backup's way, large as it may be, over the local socket."""


@click.group("system", cls=Group)
def system() -> None:
    """Manage this daemon"""


@system.command("backup", cls=Command, usage="[OPTIONS] FILE", arity=(1, 1))
@click.option("--passphrase-file", metavar="file", help=f"File that holds the passphrase (env {PASSPHRASE})")
@BoolFlag.option("--insecure", help="Do not encrypt: whoever reads the file owns the swarm")
@BoolFlag.option("-f", "--force", help="Overwrite an existing file")
@click.pass_obj
def backup(
    options: GlobalOptions,
    args: tuple[str, ...],
    passphrase_file: str | None,
    insecure: bool | None,
    force: bool | None,
) -> None:
    """Save the state of the swarm in a file; on a manager"""
    from swarmlet.cli.client import connect
    from swarmlet.node import backupfile

    path = Path(args[0])
    if insecure and passphrase_file:
        raise CliError("--insecure and --passphrase-file cannot be used together")
    if path.exists() and not force:
        raise CliError(f"{path} exists already; use --force to overwrite it")
    passphrase = None if insecure else _passphrase(passphrase_file, is_new=True)
    with connect(options) as client:
        header, state, warnings = _fetch(client)
    try:
        backupfile.write(path, backupfile.encode(header, state, passphrase), overwrite=bool(force))
    except FileExistsError:
        raise CliError(f"{path} exists already; use --force to overwrite it") from None
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror}") from None
    for warning in warnings:
        click.echo(f"WARNING: {warning}", err=True)
    click.echo(f"Saved swarm {header.cluster_id} at raft index {header.raft_index} in {path}.")


def _fetch(client: Any) -> tuple[Any, bytes, list[str]]:
    """Header, state and warnings, streamed from the daemon."""
    import grpc

    from swarmlet.api import pb

    header, state, warnings = pb.BackupHeader(), bytearray(), []
    try:
        for message in client.local.Backup(pb.BackupRequest(), timeout=TRANSFER_SECONDS):
            warnings.extend(message.warnings)
            if message.HasField("header"):
                header.CopyFrom(message.header)
            state += message.state
    except grpc.RpcError as error:
        raise client.explain(error) from None
    if len(state) != header.payload_bytes:
        raise CliError("the backup did not arrive whole")
    return header, bytes(state), warnings


@system.command("restore", cls=Command, usage="[OPTIONS] FILE", arity=(1, 1))
@click.option(
    "--advertise-addr", metavar="string", help='Advertised address (format: "<ip|interface>[:port]")'
)
@click.option("--passphrase-file", metavar="file", help=f"File that holds the passphrase (env {PASSPHRASE})")
@click.pass_obj
def restore(
    options: GlobalOptions, args: tuple[str, ...], advertise_addr: str | None, passphrase_file: str | None
) -> None:
    """Make a swarm from a backup, with this node as its only manager"""
    from swarmlet.api.errors import SwarmletError
    from swarmlet.cli.client import connect
    from swarmlet.node import backupfile

    path = Path(args[0])
    try:
        sealed = backupfile.read(path)
        passphrase = _passphrase(passphrase_file, is_new=False) if sealed.is_encrypted else None
        state = sealed.open(passphrase)
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from None
    except SwarmletError as error:
        raise CliError(error.message) from None
    with connect(options) as client:
        requests = backupfile.restore_requests(sealed.header, state, advertise_addr or "")
        answer = client.once(client.local.Restore, requests, TRANSFER_SECONDS)
    click.echo(
        f"Swarm {sealed.header.cluster_id} restored: current node ({answer.node_id}) is now its manager.\n\n"
        "Its former nodes come back by themselves where a manager has an address that they know;\n"
        "elsewhere they have to leave and join again:\n\n"
        f"    swarmlet swarm join --token {answer.worker_join_token} {answer.join_address}\n"
    )


@system.command("check", cls=Command)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_state_dir,
    metavar="dir",
    help="Where the state is kept (default /var/lib/swarmlet, or ~/.local/state/swarmlet without root)",
)
def check(state_dir: Path) -> int:
    """Verify the state directory of a daemon that is stopped; repair nothing"""
    from datetime import UTC, datetime

    from swarmlet.api.errors import SwarmletError
    from swarmlet.node.check import examine

    is_damaged = False
    try:
        for finding in examine(state_dir.absolute(), datetime.now(UTC)):
            is_damaged = is_damaged or finding.level == "error"
            click.echo(f"{finding.level}: {finding.text}")
    except SwarmletError as error:
        raise CliError(error.message) from None
    except OSError as error:
        raise CliError(f"cannot read {error.filename or state_dir}: {error.strerror}") from None
    return int(is_damaged)


def _passphrase(file: str | None, *, is_new: bool) -> str:
    """From the file, the environment or the terminal; never empty."""
    if file:
        try:
            found = Path(file).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"cannot read the passphrase from {file}: {error}") from None
    else:
        found = os.environ.get(PASSPHRASE, "")
    if not found and not file and sys.stdin.isatty():
        found = click.prompt("Passphrase", hide_input=True, confirmation_prompt=is_new, err=True)
    if not found:
        instead = ", or use --insecure to save it unencrypted" if is_new else ""
        raise CliError(
            "a passphrase is needed: type it at a terminal, "
            f"or give it with --passphrase-file or in {PASSPHRASE}{instead}"
        )
    return str(found)


@system.command("info", cls=Command)
@click.option("-f", "--format", "template", metavar="string", help="'json' or a Go template")
@click.pass_obj
def info(options: GlobalOptions, template: str | None) -> None:
    """Display what this daemon knows of itself and its swarm"""
    from swarmlet.api import pb
    from swarmlet.cli.client import connect

    with connect(options) as client:
        answer = client.read(client.local.Info, pb.SwarmInfoRequest())
    state = pb.LocalNodeState.Name(answer.local_node_state).removeprefix("LOCAL_NODE_STATE_").lower()
    if template:
        fields = Fields(
            ServerVersion=answer.version,
            Runtime=answer.runtime,
            Swarm=Fields(
                NodeID=answer.node_id,
                NodeAddr=answer.node_addr,
                LocalNodeState=state,
                ControlAvailable=answer.control_available,
                Error=answer.error,
                Leader=answer.leader_id,
                Cluster={"ID": answer.cluster_id} if answer.cluster_id else None,
                Managers=len(answer.managers),
                RemoteManagers=[{"NodeID": m.node_id, "Addr": m.address} for m in answer.managers],
            ),
        )
        click.echo(Template("{{json .}}" if template == "json" else template).render(fields))
        return
    click.echo(f"Server Version: {answer.version}\nRuntime: {answer.runtime}\nSwarm: {state}")
    if state != "inactive":
        _print_swarm(answer)


def _print_swarm(answer: Any) -> None:
    click.echo(f" NodeID: {answer.node_id}")
    if answer.error:
        click.echo(f" Error: {answer.error}")
    click.echo(f" Is Manager: {str(answer.control_available).lower()}")
    if answer.control_available:
        click.echo(f" ClusterID: {answer.cluster_id}\n Managers: {len(answer.managers)}")
        click.echo(f" Leader: {answer.leader_id or 'none'}")
    click.echo(f" Node Address: {answer.node_addr}\n Manager Addresses:")
    for manager in sorted(answer.managers, key=lambda m: str(m.address)):
        click.echo(f"  {manager.address}")
