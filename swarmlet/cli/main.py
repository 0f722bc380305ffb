"""The console script `swarmlet`: global options and the list of nouns, each imported when used."""

from __future__ import annotations

import click

from swarmlet.cli.command import BoolFlag, CliError, Command, Flag, Lazy, Root
from swarmlet.cli.options import GlobalOptions, default_socket
from swarmlet.cli.values import parse_positive_duration

_NOUNS = {
    "daemon": Lazy("swarmlet.cli.daemon", "daemon", "Run a node"),
    "lab": Lazy("swarmlet.lab.cli", "lab", "A whole cluster on this machine"),
    "node": Lazy("swarmlet.cli.node", "node", "Manage Swarm nodes"),
    "service": Lazy("swarmlet.cli.service", "service", "Manage Swarm services"),
    "swarm": Lazy("swarmlet.cli.swarm", "swarm", "Manage Swarm"),
    "system": Lazy("swarmlet.cli.system", "system", "Manage this daemon"),
}


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from swarmlet import __version__

        click.echo(f"Swarmlet version {__version__}")
        ctx.exit()


@click.group(cls=Root, lazy=_NOUNS, name="swarmlet", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-H",
    "--host",
    envvar="SWARMLET_HOST",
    default=lambda: f"unix://{default_socket()}",
    metavar="socket",
    help="Daemon to talk to: unix:///path or a path (env SWARMLET_HOST)",
)
@click.option(
    "--timeout",
    type=Flag("duration", parse_positive_duration),
    default="30s",
    help="How long to try while the cluster has no leader (default 30s, less when a majority is gone)",
)
@BoolFlag.option(
    "--stale",
    help="Show this manager's own view, which may be old, without asking the leader",
)
@click.option(
    "-v",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print version",
)
@click.pass_context
def cli(ctx: click.Context, host: str, timeout: int, stale: bool | None) -> None:
    """Runs services on a cluster of hosts"""
    is_patient = ctx.get_parameter_source("timeout") is not click.core.ParameterSource.DEFAULT
    ctx.obj = GlobalOptions(
        host=host, timeout_seconds=timeout / 1e9, is_patient=is_patient, stale=bool(stale)
    )


@cli.command("completion", cls=Command, usage="bash|zsh|fish", arity=(1, 1))
def completion(args: tuple[str, ...]) -> None:
    """Print the completion script of a shell: eval "$(swarmlet completion bash)" """
    from click.shell_completion import get_completion_class

    found = get_completion_class(args[0])
    if found is None:
        raise CliError(f"unknown shell {args[0]}: want bash, zsh or fish")
    click.echo(found(cli, {}, "swarmlet", "_SWARMLET_COMPLETE").source())


def main() -> None:
    cli.main(prog_name="swarmlet")
