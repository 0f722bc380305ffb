"""`service logs`: the lines of a service's tasks, each with the task and node it comes from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
import grpc

from swarmlet.api import pb
from swarmlet.cli.command import CliError
from swarmlet.cli.tasks import Names
from swarmlet.cli.values import parse_moment, parse_uint, short_id

if TYPE_CHECKING:
    from swarmlet.cli.client import Client

ALL_LINES = -1


@dataclass(frozen=True)
class LogStyle:
    timestamps: bool = False
    truncate: bool = True
    task_ids: bool = True
    raw: bool = False
    details: bool = False
    resolve: bool = True


def log_options(*, follow: bool, tail: str, since: str | None, now: datetime) -> pb.LogOptions:
    """Raises CliError for a `tail` or `since` that means nothing."""
    options = pb.LogOptions(follow=follow, stdout=True, stderr=True, tail=ALL_LINES)
    flag = "--tail"
    try:
        if tail not in ("all", ""):
            options.tail = parse_uint(tail)
        flag = "--since"
        if since:
            options.since.FromDatetime(parse_moment(since, now))
    except ValueError as error:
        raise CliError(f"invalid value for {flag}: {error}") from None
    return options


def write_logs(client: Client, reference: str, options: pb.LogOptions, style: LogStyle) -> None:
    """Prints until the stream ends. Raises CliError when there is no such service or task."""
    padding = _slot_width(client, reference, style)
    prefix = _prefixes(client, style, padding)
    request = pb.ServiceLogsRequest(reference=reference, options=options)
    call = client.control.ServiceLogs(request)
    try:
        for response in call:
            for warning in response.warnings:
                click.echo(warning, err=True)
            for line in response.lines:
                _write(line, prefix, style)
    except grpc.RpcError as error:
        raise client.explain(error) from None
    finally:
        call.cancel()  # type: ignore[no-untyped-call,unused-ignore]


def _slot_width(client: Client, reference: str, style: LogStyle) -> int:
    """Digits of the largest slot, by which shorter ones are padded."""
    from swarmlet.cli.client import DaemonError

    try:
        service = client.read(client.control.GetService, pb.GetServiceRequest(reference=reference)).service
        tty = service.spec.task_template.container_spec.tty
        largest = service.spec.mode.replicated.replicas if service.spec.mode.HasField("replicated") else 0
    except DaemonError as error:
        if not error.is_not_found:
            raise
        try:
            task = client.read(client.control.GetTask, pb.GetTaskRequest(reference=reference)).task
        except DaemonError as missing:
            if missing.is_not_found:
                raise CliError(f"no such task or service: {reference}") from None
            raise
        tty, largest = task.spec.container_spec.tty, task.slot
    if tty and not style.raw:
        raise CliError("tty service logs only supported with --raw")
    return len(str(largest))


def _prefixes(client: Client, style: LogStyle, padding: int) -> Callable[[pb.LogLine], str]:
    if style.raw:
        return lambda _line: ""
    names = Names.fetch(client) if style.resolve else Names.unresolved()
    slots: dict[str, int] = {}
    known: dict[tuple[str, str], str] = {}

    def slot_of(task_id: str) -> int:
        if task_id not in slots:
            request = pb.GetTaskRequest(reference=task_id)
            slots[task_id] = client.read(client.control.GetTask, request).task.slot
        return slots[task_id]

    def prefix(line: pb.LogLine) -> str:
        key = (line.task_id, line.node_id)
        if key not in known:
            slot = _slot_or_none(slot_of, line.task_id)
            name = f"{names.service(line.service_id)}.{slot}"
            if style.task_ids:
                name += f".{short_id(line.task_id) if style.truncate else line.task_id}"
            pad = " " * (padding - len(str(slot)))
            known[key] = f"{name}@{names.node(line.node_id)}{pad}    | "
        return known[key]

    return prefix


def _slot_or_none(slot_of: Callable[[str], int], task_id: str) -> int:
    from swarmlet.cli.client import DaemonError

    try:
        return slot_of(task_id)
    except DaemonError as error:
        if error.is_not_found:  # its task has been reaped; the line is still worth showing
            return 0
        raise


def _write(line: pb.LogLine, prefix: Callable[[pb.LogLine], str], style: LogStyle) -> None:
    out = sys.stderr if line.stream == pb.LOG_STREAM_STDERR else sys.stdout
    head = f"{_timestamp(line)} " if style.timestamps else ""
    head += prefix(line)
    if style.details and not style.raw:
        head += " "  # the place of the logging driver's details, of which there are none
    click.echo(head.encode() + line.data, file=out)


def _timestamp(line: pb.LogLine) -> str:
    at = datetime.fromtimestamp(line.timestamp.seconds, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{line.timestamp.nanos:09d}Z"
