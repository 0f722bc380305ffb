"""From a task's spec to the program that the process runtime runs.

Called by the process runtime while it prepares a task. Everything the spec asks for
that needs a container is refused here with the reason, so that nobody believes a
task to be confined that is not.
"""

from __future__ import annotations

import grp
import os
import pwd
import resource
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from google.protobuf.message import Message

from swarmlet.api import pb
from swarmlet.runtime.base import TaskRejected, TaskResources
from swarmlet.runtime.health import HealthCheck
from swarmlet.runtime.supervisor import Credentials, Program
from swarmlet.runtime.templates import context_for, expand, expand_container_spec, task_name

_log = structlog.get_logger(__name__)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEFAULT_GRACE_SECONDS = 10.0
_WITHOUT_EFFECT = (
    "privileges", "init", "tty", "open_stdin", "read_only", "hosts", "dns_config", "sysctls",
    "capability_add", "capability_drop", "isolation",
)  # fmt: skip


@dataclass(frozen=True)
class ProgramPlan:
    program: Program
    health_check: HealthCheck | None
    probe: Program | None
    """The command of the health check, in the program's environment."""


def plan_program(
    task: pb.Task,
    resources: TaskResources,
    *,
    address: str,
    scratch: Path,
    files: Path | None,
    cgroups: Sequence[Path],
    environment: Mapping[str, str],
) -> ProgramPlan:
    """What to run for `task`. Raises TaskRejected. Blocking: it looks at files and users.

    `scratch` is where the program runs when the spec names no directory, `files` where its secrets are.
    """
    context = context_for(task, resources, address)
    spec = expand_container_spec(task.spec.container_spec, context)
    _refuse_mounts(spec)
    ignored = [name for name in _WITHOUT_EFFECT if _asks_for(spec, name)]
    if ignored:
        _log.warning("fields without effect in the process runtime", task_id=task.id, fields=ignored)
    command = [expand(word, context, "command") for word in (*spec.command, *spec.args)]
    if not command:
        raise TaskRejected(
            f"the process runtime needs a command: image {spec.image or '(none)'} is not used, "
            "give the program to run after it"
        )
    credentials = credentials_of(spec.user, spec.groups)
    directory = Path(spec.dir) if spec.dir else scratch
    if not directory.is_dir():
        raise TaskRejected(f"working directory {spec.dir} does not exist on node {resources.node_hostname}")
    variables = _environment(task, spec, resources, address, credentials, files, environment)
    variables = {**variables, **dict(entry.partition("=")[::2] for entry in spec.env if "=" in entry)}
    program = Program(
        command=[_executable(command[0], variables["PATH"], directory), *command[1:]],
        environment=variables,
        working_directory=directory,
        credentials=credentials,
        resource_limits=_resource_limits(spec.ulimits),
        cgroups=cgroups,
    )
    try:
        check = HealthCheck.from_spec(spec.healthcheck)
    except ValueError as error:
        raise TaskRejected(str(error)) from error
    probe = None
    if check is not None:
        probe = Program(list(check.command), variables, directory, credentials)
    return ProgramPlan(program, check, probe)


def stop_signal_of(spec: pb.ContainerSpec) -> signal.Signals:
    """SIGTERM unless the spec names another: `9`, `KILL` or `SIGKILL`. Raises TaskRejected."""
    text = spec.stop_signal.strip().upper()
    if not text:
        return signal.SIGTERM
    try:
        return (
            signal.Signals(int(text))
            if text.isdecimal()
            else signal.Signals["SIG" + text.removeprefix("SIG")]
        )
    except (KeyError, ValueError):
        raise TaskRejected(f"Invalid signal: {spec.stop_signal}") from None


def stop_grace_seconds_of(spec: pb.ContainerSpec) -> float:
    return (
        spec.stop_grace_period_ns / 1e9 if spec.HasField("stop_grace_period_ns") else _DEFAULT_GRACE_SECONDS
    )


def credentials_of(user: str, groups: Sequence[str]) -> Credentials | None:
    """None for the daemon's own user. Raises TaskRejected for one that does not exist or is not allowed."""
    if not user and not groups:
        return None
    name, _, group = user.partition(":")
    uid, gid, login_groups = _user(name or str(os.getuid()))
    if group:
        gid = _group(group)
    if uid == os.getuid() and gid == os.getgid() and not groups:
        return None
    if os.getuid() == 0:
        return Credentials(uid, gid, tuple(sorted({gid, *login_groups, *map(_group, groups)})))
    raise TaskRejected(
        f"cannot run as user {user or name!r}: this node's daemon runs without root; "
        "run it as root or leave out --user and --group"
    )


def _user(name: str) -> tuple[int, int, list[int]]:
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        if name.isdecimal():
            return int(name), 0, []
        raise TaskRejected(f"unable to find user {name}: no matching entries in passwd file") from None
    return entry.pw_uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid)


def _group(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise TaskRejected(f"unable to find group {name}: no matching entries in group file") from None


def _environment(
    task: pb.Task,
    spec: pb.ContainerSpec,
    resources: TaskResources,
    address: str,
    credentials: Credentials | None,
    files: Path | None,
    markers: Mapping[str, str],
) -> dict[str, str]:
    home = "/"
    try:
        home = pwd.getpwuid(credentials.uid if credentials else os.getuid()).pw_dir
    except KeyError:
        _log.debug("user has no home", task_id=task.id)
    variables = {
        "PATH": _PATH,
        "HOME": home,
        "LANG": "C.UTF-8",
        "HOSTNAME": spec.hostname or resources.node_hostname,
        **markers,
        "SWARMLET_TASK_ADDRESS": address,
        "SWARMLET_TASK_ID": task.id,
        "SWARMLET_TASK_SLOT": str(task.slot),
        "SWARMLET_TASK_NAME": task_name(task),
        "SWARMLET_SERVICE_NAME": task.service_name,
        "SWARMLET_NODE_ID": resources.node_id or task.node_id,
        "SWARMLET_NODE_HOSTNAME": resources.node_hostname,
    }
    if files is not None:
        variables["SWARMLET_SECRETS_DIR"] = str(files / "secrets")
        variables["SWARMLET_CONFIGS_DIR"] = str(files / "configs")
    return variables


def _executable(name: str, path: str, directory: Path) -> str:
    if "/" not in name:
        if found := shutil.which(name, path=path):
            return found
        raise TaskRejected(f'exec: "{name}": executable file not found in $PATH')
    file = directory / name
    try:
        is_file = file.is_file()
    except PermissionError:  # of a directory on the way
        raise TaskRejected(f'exec: "{name}": permission denied') from None
    if not is_file:
        raise TaskRejected(f'exec: "{name}": stat {name}: no such file or directory')
    if not os.access(file, os.X_OK):
        raise TaskRejected(f'exec: "{name}": permission denied')
    return name


def _refuse_mounts(spec: pb.ContainerSpec) -> None:
    for mount in spec.mounts:
        kind = pb.MountType.Name(mount.type).removeprefix("MOUNT_TYPE_").lower()
        raise TaskRejected(
            f"the process runtime cannot mount {kind} {mount.source} at {mount.target}: its tasks see the "
            "node's own file system; use the path itself, or a node with the docker runtime"
        )


def _asks_for(spec: pb.ContainerSpec, name: str) -> bool:
    """Whether the field asks for something: Docker's client sends Init: false and an empty DNSConfig."""
    value = getattr(spec, name)
    return value.ByteSize() > 0 if isinstance(value, Message) else bool(value)


def _resource_limits(ulimits: Sequence[pb.Ulimit]) -> dict[int, tuple[int, int]]:
    limits = {}
    for ulimit in ulimits:
        number = getattr(resource, "RLIMIT_" + ulimit.name.upper(), None)
        if number is None:
            raise TaskRejected(f"invalid ulimit type: {ulimit.name}")
        limits[number] = (ulimit.soft, ulimit.hard)
    return limits
