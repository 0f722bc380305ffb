"""`swarmlet system`: what this daemon is and which part it plays."""

from __future__ import annotations

from typing import Any

import click

from swarmlet.cli.command import Command, Group
from swarmlet.cli.options import GlobalOptions
from swarmlet.cli.template import Fields, Template


@click.group("system", cls=Group)
def system() -> None:
    """Manage this daemon"""


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
