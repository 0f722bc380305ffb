"""`swarmlet service`: create, list, inspect, scale, update, roll back and remove services; their logs."""

from __future__ import annotations

from typing import Any

import click

from swarmlet.cli.command import BoolFlag, CliError, Command, Group, UsageMistake, usage_line
from swarmlet.cli.formatting import FORMAT_HELP, inspect, write_rows
from swarmlet.cli.options import GlobalOptions
from swarmlet.cli.service_flags import CREATE_HELP, UPDATE_HELP, create_flags, update_flags
from swarmlet.cli.values import familiar_image, natural_key, parse_uint, short_id

_HEADERS = {
    "ID": "ID",
    "Name": "NAME",
    "Mode": "MODE",
    "Replicas": "REPLICAS",
    "Image": "IMAGE",
    "Ports": "PORTS",
}
_TABLE = "\\t".join(f"{{{{.{name}}}}}" for name in _HEADERS)
_MODES = {
    "replicated": "replicated",
    "global": "global",
    "replicated_job": "replicated job",
    "global_job": "global job",
}


def _complete(ctx: click.Context, text: str) -> list[str]:
    from swarmlet.cli.requests import complete_services

    return complete_services(ctx, text)


@click.group("service", cls=Group)
def service() -> None:
    """Manage Swarm services"""


@service.command(
    "create",
    cls=Command,
    usage="[OPTIONS] IMAGE [COMMAND] [ARG...]",
    arity=(1, None),
    interspersed=False,
    help=CREATE_HELP,
)
@create_flags
@click.pass_obj
def create(options: GlobalOptions, /, args: tuple[str, ...], **given: Any) -> None:
    from swarmlet.api import pb
    from swarmlet.cli.client import connect
    from swarmlet.cli.progress import wait_for_service
    from swarmlet.cli.service_spec import build_spec

    image, *command = args
    spec = build_spec(given, image, command)
    if given["with_registry_auth"]:
        from swarmlet.cli.registry_auth import registry_auth

        spec.task_template.container_spec.pull_auth = registry_auth(image)
    with connect(options) as client:
        answer = client.write(client.control.CreateService, pb.CreateServiceRequest(spec=spec))
        for warning in answer.warnings:
            click.echo(warning, err=True)
        click.echo(answer.service_id)
        if not given["detach"]:
            wait_for_service(
                client,
                answer.service_id,
                minimum_version=0,
                timeout_seconds=options.timeout_seconds,
                quiet=bool(given["quiet"]),
            )


@service.command("ls", cls=Command, aliases=("list",))
@click.option(
    "-f", "--filter", "filters", multiple=True, metavar="filter", help="Filter output based on conditions"
)
@click.option("--format", "template", metavar="string", help=FORMAT_HELP)
@BoolFlag.option("-q", "--quiet", help="Only display IDs")
@click.pass_obj
def ls(options: GlobalOptions, filters: tuple[str, ...], template: str | None, quiet: bool | None) -> None:
    """List services"""
    from swarmlet.api import pb
    from swarmlet.cli.client import connect
    from swarmlet.cli.requests import filters_of
    from swarmlet.cli.tasks import ingress_ports

    request = pb.ListServicesRequest(filters=filters_of(filters), status=not quiet)
    with connect(options) as client:
        services = client.read(client.control.ListServices, request).services
    rows = [
        {
            "ID": short_id(found.id),
            "Name": found.spec.name,
            "Mode": _MODES[found.spec.mode.WhichOneof("mode") or "replicated"],
            "Replicas": _replicas(found),
            "Image": familiar_image(found.spec.task_template.container_spec.image),
            "Ports": ingress_ports(found.endpoint.ports),
        }
        for found in sorted(services, key=lambda s: natural_key(s.spec.name))
    ]
    write_rows(rows, headers=_HEADERS, default=_TABLE, template=template, quiet=bool(quiet))


def _replicas(found: Any) -> str:
    status = found.service_status
    counts = f"{status.running_tasks}/{status.desired_tasks}"
    mode = found.spec.mode
    kind = mode.WhichOneof("mode")
    if kind == "replicated_job":
        return f"{counts} ({status.completed_tasks}/{mode.replicated_job.total_completions} completed)"
    if kind == "global_job":
        return (
            f"{counts} ({status.completed_tasks}/{status.desired_tasks + status.completed_tasks} completed)"
        )
    most = found.spec.task_template.placement.max_replicas
    return f"{counts} (max {most} per node)" if most and kind == "replicated" else counts


@service.command(
    "ps", cls=Command, usage="[OPTIONS] SERVICE [SERVICE...]", arity=(1, None), completes=_complete
)
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
    """List the tasks of one or more services"""
    from swarmlet.api import pb
    from swarmlet.cli.client import DaemonError, connect
    from swarmlet.cli.requests import filters_of, get_node, get_service
    from swarmlet.cli.tasks import Names, write_tasks

    with connect(options) as client:
        ids, missing = [], []
        for reference in args:
            try:
                ids.append(get_service(client, reference).id)
            except DaemonError as error:
                if not error.is_not_found:
                    raise
                missing.append(f"no such service: {reference}")
        if ids:
            wanted = filters_of(filters)
            for condition in wanted:
                if condition.key == "node":
                    condition.values[:] = [get_node(client, name).id for name in condition.values]
            request = pb.ListTasksRequest(filters=[*wanted, pb.Filter(key="service", values=ids)])
            tasks = client.read(client.control.ListTasks, request).tasks
            names = Names.unresolved() if no_resolve else Names.fetch(client)
            write_tasks(tasks, names, template=template, truncate=not (no_trunc or quiet), quiet=bool(quiet))
    if missing:
        raise CliError("\n".join(missing))


@service.command(
    "inspect", cls=Command, usage="[OPTIONS] SERVICE [SERVICE...]", arity=(1, None), completes=_complete
)
@click.option("-f", "--format", "template", metavar="string", help="'json' or a Go template")
@BoolFlag.option("--pretty", help="Print the information in a human friendly format")
@click.pass_obj
def inspect_service(
    options: GlobalOptions, args: tuple[str, ...], template: str | None, pretty: bool | None
) -> None:
    """Display detailed information on one or more services"""
    from swarmlet.api import pb
    from swarmlet.cli.client import DaemonError, connect
    from swarmlet.cli.requests import for_each, get_service

    if pretty and template:
        raise CliError("--format is incompatible with human friendly format")
    with connect(options) as client:

        def fetch(reference: str) -> pb.Service:
            try:
                return get_service(client, reference)
            except DaemonError as error:
                raise CliError(f"no such service: {reference}") if error.is_not_found else error from None

        if pretty:
            from swarmlet.cli.pretty import pretty_service

            for_each(args, lambda reference: click.echo(pretty_service(fetch(reference))))
        else:
            inspect(args, template, fetch)


@service.command(
    "scale",
    cls=Command,
    usage="SERVICE=REPLICAS [SERVICE=REPLICAS...]",
    arity=(1, None),
    completes=_complete,
)
@BoolFlag.option("-d", "--detach", help="Exit immediately instead of waiting for the service to converge")
@click.pass_context
def scale(ctx: click.Context, args: tuple[str, ...], detach: bool | None) -> None:
    """Scale one or multiple replicated services"""
    from swarmlet.cli.client import Client, connect
    from swarmlet.cli.progress import wait_for_service
    from swarmlet.cli.service_update import set_replicas

    wanted = [_scale_argument(ctx, text) for text in args]
    options: GlobalOptions = ctx.obj
    errors: list[str] = []
    scaled = []

    def change(client: Client, reference: str, replicas: int) -> Any:
        refusal = "scale can only be used with replicated or replicated-job mode"
        return _change(client, reference, lambda spec: set_replicas(spec.mode, replicas, refusal))

    with connect(options) as client:
        for reference, text in wanted:
            try:
                answer = change(client, reference, parse_uint(text))
            except ValueError as error:
                errors.append(f"{reference}: invalid replicas value {text}: {error}")
            except CliError as error:
                errors.append(f"{reference}: {error}")
            else:
                for warning in answer.warnings:
                    click.echo(warning, err=True)
                click.echo(f"{reference} scaled to {int(text)}")
                scaled.append((reference, answer.service))
        for reference, changed in [] if detach else scaled:
            try:
                wait_for_service(
                    client,
                    changed.id,
                    minimum_version=changed.version.index,
                    timeout_seconds=options.timeout_seconds,
                )
            except CliError as error:
                errors.append(f"{reference}: {error}")
    if errors:
        raise CliError("\n".join(errors))


def _scale_argument(ctx: click.Context, text: str) -> tuple[str, str]:
    reference, _, replicas = text.partition("=")
    if not reference or not replicas:
        raise CliError(
            f"invalid scale specifier '{text}'.\nSee '{ctx.command_path} --help'.\n\n"
            f"{usage_line(ctx)}\n\n{ctx.command.get_short_help_str(100)}"
        )
    return reference, replicas


@service.command(
    "update", cls=Command, usage="[OPTIONS] SERVICE", arity=(1, 1), completes=_complete, help=UPDATE_HELP
)
@update_flags
@click.pass_context
def update(ctx: click.Context, /, args: tuple[str, ...], **given: Any) -> None:
    from swarmlet.cli.client import connect
    from swarmlet.cli.service_update import apply_update, changed_beside_rollback

    if given["rollback"] and changed_beside_rollback(given):
        raise UsageMistake("other flags may not be combined with --rollback", ctx)

    def edit(spec: Any) -> None:
        apply_update(spec, given)
        if given["with_registry_auth"]:
            from swarmlet.cli.registry_auth import registry_auth

            container = spec.task_template.container_spec
            container.pull_auth = registry_auth(container.image)

    options: GlobalOptions = ctx.obj
    with connect(options) as client:
        rollback = "previous" if given["rollback"] else ""
        answer = _change(client, args[0], _as_it_is if rollback else edit, rollback=rollback)
        _report(client, options, args[0], answer, detach=given["detach"], quiet=given["quiet"])


@service.command("rollback", cls=Command, usage="[OPTIONS] SERVICE", arity=(1, 1), completes=_complete)
@BoolFlag.option("-d", "--detach", help="Exit immediately instead of waiting for the service to converge")
@BoolFlag.option("-q", "--quiet", help="Suppress progress output")
@click.pass_obj
def rollback(options: GlobalOptions, args: tuple[str, ...], detach: bool | None, quiet: bool | None) -> None:
    """Revert changes to a service's configuration"""
    from swarmlet.cli.client import connect

    with connect(options) as client:
        answer = _change(client, args[0], _as_it_is, rollback="previous")
        _report(client, options, args[0], answer, detach=detach, quiet=quiet)


def _as_it_is(_spec: Any) -> None:
    pass


def _change(client: Any, reference: str, edit: Any, *, rollback: str = "") -> Any:
    """Reads the service, edits its spec and writes it back; again when somebody else wrote in between."""
    from swarmlet.api import pb
    from swarmlet.cli.requests import get_service

    def attempt() -> pb.UpdateServiceResponse:
        current = get_service(client, reference)
        edit(current.spec)
        request = pb.UpdateServiceRequest(
            service_id=current.id, version=current.version.index, spec=current.spec, rollback=rollback
        )
        answer: pb.UpdateServiceResponse = client.write(client.control.UpdateService, request)
        return answer

    return client.until_current(attempt)


def _report(
    client: Any,
    options: GlobalOptions,
    reference: str,
    answer: Any,
    *,
    detach: bool | None,
    quiet: bool | None,
) -> None:
    from swarmlet.cli.progress import wait_for_service

    for warning in answer.warnings:
        click.echo(warning, err=True)
    click.echo(reference)
    if not detach:
        wait_for_service(
            client,
            answer.service.id,
            minimum_version=answer.service.version.index,
            timeout_seconds=options.timeout_seconds,
            quiet=bool(quiet),
        )


@service.command(
    "rm", cls=Command, aliases=("remove",), usage="SERVICE [SERVICE...]", arity=(1, None), completes=_complete
)
@click.pass_obj
def rm(options: GlobalOptions, args: tuple[str, ...]) -> None:
    """Remove one or more services"""
    from swarmlet.api import pb
    from swarmlet.cli.client import connect
    from swarmlet.cli.requests import for_each, get_service

    with connect(options) as client:

        def remove(reference: str) -> None:
            request = pb.RemoveServiceRequest(service_id=get_service(client, reference).id)
            client.write(client.control.RemoveService, request)
            click.echo(reference)

        for_each(args, remove)


@service.command("logs", cls=Command, usage="[OPTIONS] SERVICE|TASK", arity=(1, 1), completes=_complete)
@BoolFlag.option("--details", help="Show extra details provided to logs")
@BoolFlag.option("-f", "--follow", help="Follow log output")
@BoolFlag.option("--no-resolve", help="Do not map IDs to Names in output")
@BoolFlag.option("--no-task-ids", help="Do not include task IDs in output")
@BoolFlag.option("--no-trunc", help="Do not truncate output")
@BoolFlag.option("--raw", help="Do not neatly format logs")
@click.option(
    "--since", metavar="string", help='Show logs since timestamp ("2013-01-02T13:23:37Z") or relative ("42m")'
)
@click.option(
    "-n",
    "--tail",
    metavar="string",
    default="all",
    help='Number of lines to show from the end (default "all")',
)
@BoolFlag.option("-t", "--timestamps", help="Show timestamps")
@click.pass_obj
def logs(
    options: GlobalOptions, /, args: tuple[str, ...], since: str | None, tail: str, **given: bool | None
) -> None:
    """Fetch the logs of a service or task"""
    from datetime import UTC, datetime

    from swarmlet.cli.client import connect
    from swarmlet.cli.logs import LogStyle, log_options, write_logs

    wanted = log_options(follow=bool(given["follow"]), tail=tail, since=since, now=datetime.now(UTC))
    style = LogStyle(
        timestamps=bool(given["timestamps"]),
        truncate=not given["no_trunc"],
        task_ids=not given["no_task_ids"],
        raw=bool(given["raw"]),
        details=bool(given["details"]),
        resolve=not given["no_resolve"],
    )
    with connect(options) as client:
        write_logs(client, args[0], wanted, style)
