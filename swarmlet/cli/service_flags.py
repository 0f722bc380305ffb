"""The flags of `service create` and `service update`: their names, types and help, as Docker's.

Read by `service`, which hands what was given to `service_spec` and
`service_update`. A flag that was not given has the value None, or () when it may
be repeated, so that "changed" needs no other mark.
"""

from __future__ import annotations

import importlib
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import click

from swarmlet.cli.command import BoolFlag, Flag
from swarmlet.cli.values import (
    parse_bytes,
    parse_cpus,
    parse_duration,
    parse_int,
    parse_int32,
    parse_positive_duration,
    parse_ratio,
    parse_uint,
)

Decorated = Callable[..., Any]

CREATE_HELP = """Create a new service

Waits until all tasks run, unless --detach is given. A task counts as running once
its health check, if it has one, has passed; there is no further wait for stability.
"""

UPDATE_HELP = """Update a service

Waits until every task has been replaced and the monitoring period of the rollout
(--update-monitor) has passed, unless --detach is given.
"""


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(str(error).lower()) from None


def _env(text: str) -> str:
    name, equals, _ = text.partition("=")
    if not name:
        raise ValueError(f"invalid environment variable: {text}")
    return f"{name}={os.environ[name]}" if not equals and name in os.environ else text


def _choice(what: str, *words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            listed = ", ".join(f'"{word}"' for word in words)
            raise ValueError(f"invalid {what} {text!r}: must be one of {listed}")
        return text.lower()

    return parse


def _attachment(name: str) -> Callable[[str], Any]:
    """A parser of `attachments`, which is imported when the flag is used."""
    return lambda text: getattr(importlib.import_module("swarmlet.cli.attachments"), name)(text)


_TYPES: Mapping[str, Flag] = {
    "list": Flag("list", str),
    "string": Flag("string", str),
    "env": Flag("list", _env),
    "uint": Flag("uint", parse_uint),
    "int": Flag("int", parse_int),
    "int32": Flag("int", parse_int32),
    "decimal": Flag("decimal", parse_cpus),
    "bytes": Flag("bytes", parse_bytes),
    "float": Flag("float", parse_ratio),
    "duration": Flag("duration", parse_duration),
    "positive": Flag("duration", parse_positive_duration),
    "command": Flag("command", _words),
    "port": Flag("port", _attachment("parse_port")),
    "mount": Flag("mount", _attachment("parse_mount")),
    "network": Flag("network", _attachment("parse_network")),
    "secret": Flag("secret", _attachment("parse_secret")),
    "config": Flag("config", _attachment("parse_config")),
    "ulimit": Flag("ulimit", _attachment("parse_ulimit")),
    "pref": Flag("pref", _attachment("parse_preference")),
    "generic": Flag("list", _attachment("parse_generic_resource")),
    "host": Flag("list", _attachment("parse_extra_host")),
    "ip": Flag("list", _attachment("parse_ip")),
    "condition": Flag("string", _choice("restart condition", "none", "on-failure", "any")),
    "order": Flag("string", _choice("order", "start-first", "stop-first")),
    "update-action": Flag("string", _choice("failure action", "pause", "continue", "rollback")),
    "rollback-action": Flag("string", _choice("failure action", "pause", "continue")),
    "endpoint-mode": Flag("string", _choice("endpoint mode", "vip", "dnsrr")),
}

_ANY_UNIT = "(ns|us|ms|s|m|h)"
_HEALTH_UNIT = "(ms|s|m|h)"

# Declarations, type, help text, and the default that the cluster applies.
_SCALARS: tuple[tuple[str, str, str, str], ...] = (
    ("--endpoint-mode", "endpoint-mode", "Endpoint mode (vip or dnsrr)", '"vip"'),
    ("--entrypoint", "command", "Overwrite the default ENTRYPOINT of the image", ""),
    ("--health-cmd", "string", "Command to run to check health", ""),
    ("--health-interval", "positive", f"Time between running the check {_HEALTH_UNIT}", ""),
    ("--health-retries", "int32", "Consecutive failures needed to report unhealthy", ""),
    (
        "--health-start-interval",
        "positive",
        f"Time between running the check during the start period {_HEALTH_UNIT}",
        "",
    ),
    (
        "--health-start-period",
        "positive",
        f"Start period for the container to initialize before counting retries {_HEALTH_UNIT}",
        "",
    ),
    ("--health-timeout", "positive", f"Maximum time to allow one check to run {_HEALTH_UNIT}", ""),
    ("--hostname", "string", "Container hostname", ""),
    ("--isolation", "string", "Service container isolation mode", ""),
    ("--limit-cpu", "decimal", "Limit CPUs", ""),
    ("--limit-memory", "bytes", "Limit Memory", ""),
    ("--limit-pids", "int", "Limit maximum number of processes (0 = unlimited)", ""),
    ("--log-driver", "string", "Logging driver for service", ""),
    (
        "--max-concurrent",
        "uint",
        "Number of job tasks to run concurrently (default equal to --replicas)",
        "",
    ),
    ("--oom-score-adj", "int", "Tune host's OOM preferences (-1000 to 1000)", ""),
    ("--replicas", "uint", "Number of tasks", ""),
    ("--replicas-max-per-node", "uint", "Maximum number of tasks per node (0 = unlimited)", ""),
    ("--reserve-cpu", "decimal", "Reserve CPUs", ""),
    ("--reserve-memory", "bytes", "Reserve Memory", ""),
    (
        "--restart-condition",
        "condition",
        'Restart when condition is met ("none", "on-failure", "any")',
        '"any"',
    ),
    ("--restart-delay", "duration", f"Delay between restart attempts {_ANY_UNIT}", "5s"),
    ("--restart-max-attempts", "uint", "Maximum number of restarts before giving up", ""),
    ("--restart-window", "duration", f"Window used to evaluate the restart policy {_ANY_UNIT}", ""),
    ("--rollback-delay", "duration", f"Delay between task rollbacks {_ANY_UNIT}", "0s"),
    (
        "--rollback-failure-action",
        "rollback-action",
        'Action on rollback failure ("pause", "continue")',
        '"pause"',
    ),
    ("--rollback-max-failure-ratio", "float", "Failure rate to tolerate during a rollback", "0"),
    (
        "--rollback-monitor",
        "duration",
        f"Duration after each task rollback to monitor for failure {_ANY_UNIT}",
        "5s",
    ),
    ("--rollback-order", "order", 'Rollback order ("start-first", "stop-first")', '"stop-first"'),
    (
        "--rollback-parallelism",
        "uint",
        "Maximum number of tasks rolled back simultaneously (0 to roll back all at once)",
        "1",
    ),
    (
        "--stop-grace-period",
        "duration",
        f"Time to wait before force killing a container {_ANY_UNIT}",
        "10s",
    ),
    ("--stop-signal", "string", "Signal to stop the container", ""),
    ("--update-delay", "duration", f"Delay between updates {_ANY_UNIT}", "0s"),
    (
        "--update-failure-action",
        "update-action",
        'Action on update failure ("pause", "continue", "rollback")',
        '"pause"',
    ),
    ("--update-max-failure-ratio", "float", "Failure rate to tolerate during an update", "0"),
    (
        "--update-monitor",
        "duration",
        f"Duration after each task update to monitor for failure {_ANY_UNIT}",
        "5s",
    ),
    ("--update-order", "order", 'Update order ("start-first", "stop-first")', '"stop-first"'),
    (
        "--update-parallelism",
        "uint",
        "Maximum number of tasks updated simultaneously (0 to update all at once)",
        "1",
    ),
    ("-u --user", "string", "Username or UID (format: <name|uid>[:<group|gid>])", ""),
    ("-w --workdir", "string", "Working directory inside the container", ""),
)
_SWITCHES: tuple[tuple[str, str], ...] = (
    ("-d --detach", "Exit immediately instead of waiting for the service to converge"),
    ("--init", "Use an init inside each service container to forward signals and reap processes"),
    ("--no-healthcheck", "Disable any container-specified HEALTHCHECK"),
    ("--no-resolve-image", "Do not query the registry to resolve image digest and supported platforms"),
    ("-q --quiet", "Suppress progress output"),
    ("--read-only", "Mount the container's root filesystem as read only"),
    ("-t --tty", "Allocate a pseudo-TTY"),
    ("--with-registry-auth", "Send registry authentication details to swarm agents"),
)
_LISTS: tuple[tuple[str, str, str, str], ...] = (
    ("--config", "config", "a configuration exposed to the service", "Remove a configuration file"),
    ("--constraint", "list", "a placement constraint", "Remove a constraint"),
    ("--container-label", "list", "a container label", "Remove a container label by its key"),
    ("--dns", "ip", "a custom DNS server", "Remove a custom DNS server"),
    ("--dns-option", "list", "a DNS option", "Remove a DNS option"),
    ("--dns-search", "list", "a custom DNS search domain", "Remove a DNS search domain"),
    ("-e --env", "env", "an environment variable", "Remove an environment variable"),
    ("--generic-resource", "generic", "a generic resource", "Remove a generic resource"),
    ("--group", "list", "a supplementary user group of the container", "Remove a supplementary group"),
    ("--host", "host", "a custom host-to-IP mapping (host:ip)", "Remove a custom host-to-IP mapping"),
    ("-l --label", "list", "a service label", "Remove a label by its key"),
    ("--mount", "mount", "a mount of the service", "Remove a mount by its target path"),
    ("--network", "network", "a network attachment", "Remove a network"),
    ("--placement-pref", "pref", "a placement preference", "Remove a placement preference"),
    ("-p --publish", "port", "a published port", "Remove a published port by its target port"),
    ("--secret", "secret", "a secret exposed to the service", "Remove a secret"),
    ("--sysctl", "list", "a sysctl option", "Remove a sysctl option"),
    ("--ulimit", "ulimit", "a ulimit option", "Remove a ulimit option"),
)
_REPEATED_IN_BOTH: tuple[tuple[str, str, str], ...] = (
    ("--cap-add", "list", "Add Linux capabilities"),
    ("--cap-drop", "list", "Drop Linux capabilities"),
    ("--log-opt", "env", "Logging driver options"),
)
# What a list's -rm form takes where it is more than a name.
_REMOVE_TYPES = {"--publish": "port", "--placement-pref": "pref"}


def create_flags(function: Decorated) -> Decorated:
    """Adds every flag of `service create` to a command's function."""
    options = [
        _option("--name", "string", "Service name"),
        _option("--env-file", "list", _ENV_FILE, many=True),
    ]
    options.append(_option("--mode", "string", _MODE))
    for declaration, kind, help_text, default in _SCALARS:
        options.append(
            _option(declaration, kind, f"{help_text} (default {default})" if default else help_text)
        )
    for declaration, kind, what, _ in _LISTS:
        options.append(_option(declaration, kind, f"Add {what}", many=True))
    return _decorate(function, options)


def update_flags(function: Decorated) -> Decorated:
    """Adds every flag of `service update` to a command's function."""
    options = [
        _option("--image", "string", "Service image tag"),
        _option("args_given --args", "command", "Service command args"),
        BoolFlag(["--force"], help="Force update even if no changes require it"),
        BoolFlag(["--rollback"], help="Rollback to previous specification"),
    ]
    options += [_option(declaration, kind, help_text) for declaration, kind, help_text, _ in _SCALARS]
    for declaration, kind, what, removal in _LISTS:
        name = declaration.split()[-1]
        options.append(_option(f"{name}-add", kind, f"Add or update {what}", many=True))
        options.append(_option(f"{name}-rm", _REMOVE_TYPES.get(name, "list"), removal, many=True))
    return _decorate(function, options)


_ENV_FILE = "Read in a file of environment variables"
_MODE = 'Service mode ("replicated", "global", "replicated-job", "global-job") (default "replicated")'


def _option(declaration: str, kind: str, help_text: str, *, many: bool = False) -> click.Option:
    # Click's own default (a sentinel) becomes () for repeated options.
    return click.Option(declaration.split(), type=_TYPES[kind], help=help_text, multiple=many)


def _decorate(function: Decorated, options: list[click.Option]) -> Decorated:
    options += [BoolFlag(declaration.split(), help=help_text) for declaration, help_text in _SWITCHES]
    options += [_option(d, kind, help_text, many=True) for d, kind, help_text in _REPEATED_IN_BOTH]
    options.sort(key=lambda option: max(option.opts, key=len))
    params = getattr(function, "__click_params__", [])
    # Click reads this list from its end.
    function.__click_params__ = [*params, *reversed(options)]  # type: ignore[attr-defined]
    return function
