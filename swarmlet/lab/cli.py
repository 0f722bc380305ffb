"""The commands `swarmlet lab ...`: a whole cluster on one machine.

Attached to the command line by its main module. Commands import what they need when
they run, so that `swarmlet --help` stays quick.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarmlet.api.errors import SwarmletError

if TYPE_CHECKING:
    from swarmlet.lab.cluster import Lab

READY_SECONDS_MAX = 10.0


class _Group(click.Group):
    """Shows the project's errors as every other command does: one line, exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SwarmletError as error:
            raise click.ClickException(error.message) from error


@click.group(cls=_Group)
def lab() -> None:
    """A whole cluster on this machine, to try out, to hurt and to measure."""


def _directory(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="SWARMLET_LAB_DIR",
        default=None,
        help="Where the lab lives  [default: the user's state directory; env SWARMLET_LAB_DIR]",
    )(command)


@lab.command()
@click.option("--managers", type=int, default=3, show_default=True, help="Number of managers")
@click.option("--workers", type=int, default=0, show_default=True, help="Number of workers")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "docker", "process"]),
    default="auto",
    show_default=True,
    help="How tasks run; auto: docker where an engine answers",
)
@_directory
def up(managers: int, workers: int, runtime: str, directory: Path | None) -> None:
    """Make a cluster and wait until it is ready."""
    from swarmlet.lab import cluster

    place = _place(directory)
    began = time.monotonic()
    made = asyncio.run(cluster.up(place, managers=managers, workers=workers, runtime=runtime))
    _say_next(made, time.monotonic() - began, directory)


@lab.command()
@_directory
def down(directory: Path | None) -> None:
    """End the cluster and remove every trace of it."""
    from swarmlet.lab import cluster

    cluster.down(_place(directory))


@lab.command()
@_directory
def env(directory: Path | None) -> None:
    """Print the shell line that points `swarmlet` at a live manager."""
    made = _load(directory)
    live = made.live_managers()
    if not live:
        raise click.ClickException("no manager of the lab is alive; `swarmlet lab start manager1` starts one")
    click.echo(f"export SWARMLET_HOST={live[0].host}")


@lab.command()
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@_directory
def status(form: str, directory: Path | None) -> None:
    """Show the nodes, also the dead ones."""
    nodes = asyncio.run(_load(directory).statuses())
    if form == "json":
        click.echo(json.dumps({"nodes": [vars(node) for node in nodes]}))
        return
    rows = [("NAME", "ROLE", "STATE", "ADDRESS", "HOST")]
    rows += [
        (node.name, node.role + (" (leader)" if node.leader else ""), node.state, node.address, node.host)
        for node in nodes
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


@lab.command()
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@_directory
def kill(nodes: tuple[str, ...], directory: Path | None) -> None:
    """Power loss: daemon and tasks of the nodes die at once."""
    made = _load(directory)

    async def all_at_once() -> None:
        await asyncio.gather(*(made.kill(name) for name in _known(made, nodes)))

    asyncio.run(all_at_once())


@lab.command()
@click.argument("node")
@_directory
def start(node: str, directory: Path | None) -> None:
    """Start a node that was killed."""
    made = _load(directory)

    async def start_and_wait() -> None:
        await made.start(node)
        # Without a majority it cannot become ready, however long one waits.
        if 2 * len(made.live_managers()) > len(made.layout.managers):
            try:
                await made.wait_ready([node], timeout=READY_SECONDS_MAX)
            except SwarmletError as error:
                click.echo(f"started; {error.message}", err=True)

    asyncio.run(start_and_wait())


def _one_node(name: str, text: str, act: Callable[[Lab, str], Awaitable[None]]) -> None:
    @lab.command(name, help=text)
    @click.argument("node")
    @_directory
    def command(node: str, directory: Path | None) -> None:
        made = _load(directory)

        async def run() -> None:
            await act(made, node)

        asyncio.run(run())


_one_node("pause", "Freeze every process of a node.", lambda made, node: made.pause(node))
_one_node("resume", "Let a paused node go on.", lambda made, node: made.resume(node))
_one_node("cut", "Let no packet to or from a node (needs root).", lambda made, node: made.cut(node))
_one_node("heal", "Undo a cut.", lambda made, node: made.heal(node))


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_directory
@click.pass_context
def exec_command(ctx: click.Context, node: str, command: tuple[str, ...], directory: Path | None) -> None:
    """Run a command with SWARMLET_HOST set to a node: lab exec manager2 -- swarmlet node ls"""
    # What follows the first word is the command's, and so reaches us with the separator.
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("no command given", ctx)
    environment = {**os.environ, "SWARMLET_HOST": _load(directory).layout.node(node).host}
    try:
        done = subprocess.run(command, env=environment, check=False)
    except OSError as error:
        raise click.ClickException(f"cannot run {command[0]}: {error.strerror}") from error
    # A shell's convention for a command that a signal ended.
    ctx.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)


@lab.command()
@click.argument("node")
@click.option("-f", "--follow", is_flag=True, help="Keep printing")
@click.option("-n", "--tail", type=int, default=None, help="Only this many lines from the end")
@_directory
def logs(node: str, follow: bool, tail: int | None, directory: Path | None) -> None:
    """Print what a node's daemon logged."""
    path = _load(directory).layout.node(node).log
    if not path.exists():
        raise click.ClickException(f"{node} was never started")
    command = ["tail", "-n", "+1" if tail is None else str(tail), *(["-F"] if follow else []), str(path)]
    subprocess.run(command, check=False)


@lab.command()
@click.option(
    "--runtime", type=click.Choice(["auto", "docker", "process"]), default="auto", show_default=True
)
@click.option("--keep", is_flag=True, help="Leave the cluster running at the end")
@_directory
def demo(runtime: str, keep: bool, directory: Path | None) -> None:
    """Watch a cluster keep its service up while its nodes are killed; takes about a minute."""
    from swarmlet.lab import demo as story

    raise SystemExit(asyncio.run(story.run(directory and directory.absolute(), runtime=runtime, keep=keep)))


def _place(directory: Path | None) -> Path:
    from swarmlet.lab.layout import default_directory

    return (directory or default_directory()).absolute()


def _load(directory: Path | None) -> Lab:
    from swarmlet.lab.cluster import Lab

    return Lab.load(_place(directory))


def _known(made: Lab, names: tuple[str, ...]) -> tuple[str, ...]:
    """Every name checked before anything is done to the first."""
    for name in names:
        made.layout.node(name)
    return names


def _say_next(made: Lab, seconds: float, directory: Path | None) -> None:
    from swarmlet.lab.example import suggestion

    managers = len(made.layout.managers)
    workers = len(made.layout.nodes) - managers
    size = f"{managers} manager{'s' * (managers > 1)}"
    if workers:
        size += f", {workers} worker{'s' * (workers > 1)}"
    option = f" --dir {shlex.quote(str(made.layout.directory))}" if directory else ""
    click.echo(f"{size} ready in {seconds:.1f} s ({made.layout.runtime} runtime, {made.layout.directory})\n")
    click.echo("Type next:")
    for line in (
        f'eval "$(swarmlet lab env{option})"',
        "swarmlet node ls",
        shlex.join(["swarmlet", *suggestion(made.layout.runtime)]),
        f"curl http://{made.layout.nodes[-1].address}:8080/",
        f"swarmlet lab kill{option} {made.layout.nodes[-1].name}",
        f"swarmlet lab down{option}",
    ):
        click.echo(f"  {line}")
