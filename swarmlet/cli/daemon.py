"""`swarmlet daemon`: from flags to a DaemonConfig; the rest is the daemon's."""

from __future__ import annotations

import socket as sockets
from pathlib import Path

import click

from swarmlet.cli.command import Command
from swarmlet.cli.options import default_socket, default_state_dir

_LEVELS = ("debug", "info", "warning", "error")


@click.command("daemon", cls=Command)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_state_dir,
    metavar="dir",
    help="Where the state is kept (default /var/lib/swarmlet, or ~/.local/state/swarmlet without root)",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    default=default_socket,
    metavar="path",
    help="Local socket (default /run/swarmlet/swarmlet.sock, or $XDG_RUNTIME_DIR/swarmlet.sock without root)",
)
@click.option(
    "--listen-addr", default="0.0.0.0:2377", metavar="ip:port", help="Listen address (default 0.0.0.0:2377)"
)
@click.option("--advertise-addr", default="", metavar="ip[:port]", help="Address that other nodes are told")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "docker", "process"]),
    default="auto",
    metavar="string",
    help='What runs the tasks ("auto", "docker", "process") (default "auto")',
)
@click.option("--docker-host", default="", envvar="DOCKER_HOST", metavar="url", help="Docker Engine to use")
@click.option("--hostname", default=sockets.gethostname, metavar="string", help="Name of this node")
@click.option(
    "--log-level",
    type=click.Choice(_LEVELS),
    default="info",
    metavar="string",
    help='Least severe message logged ("debug", "info", "warning", "error") (default "info")',
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    metavar="string",
    help='How messages are written ("text", "json") (default "text")',
)
def daemon(
    state_dir: Path,
    socket: Path,
    listen_addr: str,
    advertise_addr: str,
    runtime: str,
    docker_host: str,
    hostname: str,
    log_level: str,
    log_format: str,
) -> int:
    """Run a node: an agent, and a manager while the node has that role"""
    from swarmlet.node.config import DaemonConfig
    from swarmlet.node.daemon import run

    return run(
        DaemonConfig(
            state_dir=state_dir.absolute(),
            socket=socket.absolute(),
            listen_addr=listen_addr,
            advertise_addr=advertise_addr,
            runtime=runtime,
            docker_host=docker_host,
            hostname=hostname,
            log_level=log_level,
            log_format=log_format,
        )
    )
