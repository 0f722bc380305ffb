"""What can be said about a service's spec without looking at the cluster: defaults and validity.

The rules and their words are SwarmKit's (manager/controlapi/service.go) and, for
mounts, the Docker executor's; where Docker would find out on the node (a mount source,
a port above 65535) the user is told here, before anything is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from swarmlet.api import pb
from swarmlet.api.constraints import parse_constraints
from swarmlet.api.errors import FailedPrecondition, InvalidArgument
from swarmlet.control.images import is_image_reference

NAME_LENGTH_MAX = 63
"""A DNS label."""
NANO_CPUS_MIN = 1_000_000
MEMORY_BYTES_MIN = 4 * 1024 * 1024
HEALTH_DURATION_NS_MIN = 1_000_000
PORT_MAX = 65_535
_COUNT_MAX = 2**63 - 1

_NAME = re.compile(r"[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*")
_SUPPORTED_MODES = ("replicated", "global")


def fill_defaults(spec: pb.ServiceSpec) -> None:
    """Writes what an absent field means where others rely on it being there."""
    if spec.mode.WhichOneof("mode") is None:
        spec.mode.replicated.SetInParent()
    if spec.mode.WhichOneof("mode") == "replicated" and not spec.mode.replicated.HasField("replicas"):
        spec.mode.replicated.replicas = 1
    # Docker's older place for the same thing.
    if spec.networks and not spec.task_template.networks:
        spec.task_template.networks.extend(spec.networks)
    spec.ClearField("networks")


def validate_service_spec(spec: pb.ServiceSpec) -> None:
    """Raises InvalidArgument, or FailedPrecondition for what this version cannot run yet."""
    _validate_name(spec.name)
    _validate_task(spec.task_template)
    _validate_mode(spec.mode)
    _validate_update(spec.update_config, "update")
    _validate_update(spec.rollback_config, "rollback")
    _validate_endpoint(spec.endpoint_spec)


def _validate_name(name: str) -> None:
    if not name:
        raise InvalidArgument("meta: name must be provided")
    if not _NAME.fullmatch(name):
        raise InvalidArgument("name must be valid as a DNS name component")
    if len(name) > NAME_LENGTH_MAX:
        raise InvalidArgument(f"name must be {NAME_LENGTH_MAX} characters or fewer")


def _validate_mode(mode: pb.ServiceMode) -> None:
    kind = mode.WhichOneof("mode")
    if kind not in _SUPPORTED_MODES:
        word = "" if kind is None else kind.replace("_", "-")
        raise FailedPrecondition(
            f"service mode {word} is not supported by this version: use replicated or global"
        )
    if mode.replicated.replicas > _COUNT_MAX:
        raise InvalidArgument("Number of replicas must be non-negative")


def _validate_task(task: pb.TaskSpec) -> None:
    if task.runtime not in ("", "container"):
        raise InvalidArgument("RuntimeSpec: unimplemented runtime in service spec")
    _validate_resources(task.resources.limits)
    _validate_resources(task.resources.reservations)
    if task.restart_policy.delay_ns < 0:
        raise InvalidArgument("TaskSpec: restart-delay cannot be negative")
    if task.restart_policy.window_ns < 0:
        raise InvalidArgument("TaskSpec: restart-window cannot be negative")
    parse_constraints(list(task.placement.constraints))
    container = task.container_spec
    _validate_files("secret", [(s.secret_id, s.secret_name, s.file) for s in container.secrets])
    _validate_configs(container)
    _validate_container(container)


def _validate_resources(resources: pb.Resources) -> None:
    if resources.nano_cpus and resources.nano_cpus < NANO_CPUS_MIN:
        asked, least = resources.nano_cpus / 1e9, NANO_CPUS_MIN / 1e9
        raise InvalidArgument(f"invalid cpu value {asked:g}: Must be at least {least:g}")
    if resources.memory_bytes and resources.memory_bytes < MEMORY_BYTES_MIN:
        raise InvalidArgument(f"invalid memory value {resources.memory_bytes}: Must be at least 4MiB")
    if resources.pids < 0:
        raise InvalidArgument(f"invalid pids value {resources.pids}: Must not be negative")


def _validate_container(container: pb.ContainerSpec) -> None:
    if not container.image:
        raise InvalidArgument("ContainerSpec: image reference must be provided")
    if not is_image_reference(container.image):
        raise InvalidArgument(f'ContainerSpec: "{container.image}" is not a valid repository/tag')
    _validate_mounts(container.mounts)
    if container.stop_grace_period_ns < 0:
        raise InvalidArgument("ContainerSpec: stop-grace-period cannot be negative")
    _validate_health(container.healthcheck)


def _validate_mounts(mounts: Iterable[pb.Mount]) -> None:
    targets: set[str] = set()
    for mount in mounts:
        if mount.target in targets:
            raise InvalidArgument(f"ContainerSpec: duplicate mount point: {mount.target}")
        targets.add(mount.target)
        if not mount.target.startswith("/") and mount.type != pb.MOUNT_TYPE_NPIPE:
            raise InvalidArgument(f"invalid mount target, must be an absolute path: {mount.target}")
        is_absolute = mount.source.startswith("/")
        if mount.type == pb.MOUNT_TYPE_BIND and not is_absolute:
            raise InvalidArgument(f"invalid bind mount source, must be an absolute path: {mount.source}")
        if mount.type == pb.MOUNT_TYPE_VOLUME and is_absolute:
            raise InvalidArgument(
                f"invalid volume mount source, must not be an absolute path: {mount.source}"
            )
        if mount.type == pb.MOUNT_TYPE_TMPFS and mount.source:
            raise InvalidArgument("invalid tmpfs source, source must be empty")


def _validate_health(health: pb.HealthConfig) -> None:
    for word, duration_ns in (
        ("Interval", health.interval_ns),
        ("Timeout", health.timeout_ns),
        ("StartPeriod", health.start_period_ns),
        ("StartInterval", health.start_interval_ns),
    ):
        if duration_ns and duration_ns < HEALTH_DURATION_NS_MIN:
            raise InvalidArgument(f"ContainerSpec: {word} in HealthConfig cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidArgument("ContainerSpec: Retries in HealthConfig cannot be negative")


def _validate_files(word: str, references: Sequence[tuple[str, str, pb.FileTarget]]) -> None:
    """Secrets and configs: whole references, and no two in the same file."""
    taken: dict[str, str] = {}
    for object_id, name, file in references:
        if not object_id or not name:
            raise InvalidArgument(f"malformed {word} reference")
        if not file.name:
            raise InvalidArgument(f"malformed file {word} reference, invalid target file name provided")
        if file.name in taken:
            raise InvalidArgument(
                f"{word} references '{taken[file.name]}' and '{name}' "
                f"have a conflicting target: '{file.name}'"
            )
        taken[file.name] = name


def _validate_configs(container: pb.ContainerSpec) -> None:
    files = [c for c in container.configs if not c.HasField("runtime")]
    for_runtime = [c for c in container.configs if c.HasField("runtime")]
    _validate_files("config", [(c.config_id, c.config_name, c.file) for c in files])
    if any(not c.config_id or not c.config_name for c in for_runtime):
        raise InvalidArgument("malformed config reference")
    credential = container.privileges.credential_spec.config
    if credential and credential not in [c.config_id for c in for_runtime]:
        raise InvalidArgument(
            f"CredentialSpec references config '{credential}', "
            "but that config isn't in config references with RuntimeTarget"
        )


def _validate_update(config: pb.UpdateConfig, word: str) -> None:
    if config.delay_ns < 0:
        raise InvalidArgument(f"TaskSpec: {word}-delay cannot be negative")
    if config.monitor_ns < 0:
        raise InvalidArgument(f"TaskSpec: {word}-monitor cannot be negative")
    # Written so that NaN is refused.
    if not 0 <= config.max_failure_ratio <= 1:
        raise InvalidArgument(f"TaskSpec: {word}-maxfailureratio cannot be less than 0 or bigger than 1")


def _validate_endpoint(endpoint: pb.EndpointSpec) -> None:
    taken: set[tuple[int, int]] = set()
    for port in endpoint.ports:
        if endpoint.mode == pb.ENDPOINT_MODE_DNSRR and port.publish_mode == pb.PUBLISH_MODE_INGRESS:
            raise InvalidArgument(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode"
            )
        if not 1 <= port.target_port <= PORT_MAX:
            raise InvalidArgument(
                f"EndpointSpec: invalid target port {port.target_port}: Must be between 1 and {PORT_MAX}"
            )
        if port.published_port > PORT_MAX:
            raise InvalidArgument(
                f"EndpointSpec: invalid published port {port.published_port}: Must be at most {PORT_MAX}"
            )
        if not port.published_port:
            continue
        key = (port.protocol, port.published_port)
        if key in taken:
            raise InvalidArgument("EndpointSpec: duplicate published ports provided")
        taken.add(key)


def referenced_secrets(spec: pb.ServiceSpec) -> list[tuple[str, str]]:
    """(id, name) of every secret that the spec names."""
    return [(s.secret_id, s.secret_name) for s in spec.task_template.container_spec.secrets]


def referenced_configs(spec: pb.ServiceSpec) -> list[tuple[str, str]]:
    return [(c.config_id, c.config_name) for c in spec.task_template.container_spec.configs]
