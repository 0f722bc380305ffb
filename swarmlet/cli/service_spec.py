"""From the flags of `service create` to the ServiceSpec that Docker's client would send.

`Given` is what the command line gave, by parameter name; absent flags are None or
(). Nothing here fills in the cluster's defaults or resolves names: control does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmlet.api import pb
from swarmlet.cli.command import CliError

Given = Mapping[str, Any]

RESTART_CONDITIONS = {
    "none": pb.RESTART_CONDITION_NONE,
    "on-failure": pb.RESTART_CONDITION_ON_FAILURE,
    "any": pb.RESTART_CONDITION_ANY,
}
FAILURE_ACTIONS = {
    "pause": pb.FAILURE_ACTION_PAUSE,
    "continue": pb.FAILURE_ACTION_CONTINUE,
    "rollback": pb.FAILURE_ACTION_ROLLBACK,
}
UPDATE_ORDERS = {"stop-first": pb.UPDATE_ORDER_STOP_FIRST, "start-first": pb.UPDATE_ORDER_START_FIRST}
ENDPOINT_MODES = {"vip": pb.ENDPOINT_MODE_VIP, "dnsrr": pb.ENDPOINT_MODE_DNSRR}
HEALTH_FLAGS = (
    "health_cmd",
    "health_interval",
    "health_retries",
    "health_timeout",
    "health_start_period",
    "health_start_interval",
)
ALL_CAPABILITIES = "ALL"

_SECOND_NS = 1_000_000_000
_RESTART_DELAY_NS = 5 * _SECOND_NS
_UPDATE_MONITOR_NS = 5 * _SECOND_NS


def build_spec(given: Given, image: str, args: Sequence[str]) -> pb.ServiceSpec:
    """Raises CliError for flags that contradict each other."""
    spec = pb.ServiceSpec(name=given["name"] or "", mode=_mode(given))
    spec.labels.update(key_values(given["label"]))
    spec.endpoint_spec.mode = ENDPOINT_MODES[given["endpoint_mode"] or "vip"]
    for ports in given["publish"]:
        spec.endpoint_spec.ports.extend(ports)
    is_job = spec.mode.WhichOneof("mode") in ("replicated_job", "global_job")
    for prefix, config in (("update", spec.update_config), ("rollback", spec.rollback_config)):
        if rollout_changed(given, prefix):
            if is_job:
                raise CliError("update and rollback configuration is not supported for jobs")
            set_rollout_defaults(config)
            set_rollout(config, given, prefix)
    task = spec.task_template
    _fill_container(task.container_spec, given, image, args)
    set_resources(task.resources, given)
    task.resources.limits.SetInParent()
    task.resources.reservations.SetInParent()
    task.resources.reservations.generic_resources.extend(given["generic_resource"])
    if restart_changed(given):
        set_restart_defaults(task.restart_policy)
        set_restart(task.restart_policy, given)
    task.placement.SetInParent()
    task.placement.constraints.extend(given["constraint"])
    task.placement.preferences.extend(given["placement_pref"])
    task.placement.max_replicas = given["replicas_max_per_node"] or 0
    if given["log_driver"]:
        set_log_driver(task, given)
    task.networks.extend(sorted(given["network"], key=lambda network: str(network.target)))
    return spec


def _fill_container(container: pb.ContainerSpec, given: Given, image: str, args: Sequence[str]) -> None:
    container.image = with_tag(image)
    container.args.extend(args)
    container.command.extend(given["entrypoint"] or ())
    container.env.extend(_environment(given))
    container.labels.update(key_values(given["container_label"]))
    container.groups.extend(given["group"])
    container.mounts.extend(given["mount"])
    container.hosts.extend(given["host"])
    container.init = bool(given["init"])
    container.dns_config.SetInParent()
    container.dns_config.nameservers.extend(given["dns"])
    container.dns_config.search.extend(given["dns_search"])
    container.dns_config.options.extend(given["dns_option"])
    container.sysctls.update(key_values(given["sysctl"]))
    container.ulimits.extend(sorted({u.name: u for u in given["ulimit"]}.values(), key=lambda u: str(u.name)))
    container.secrets.extend(_distinct(given["secret"], "secret"))
    container.configs.extend(_distinct(given["config"], "config"))
    added = capabilities(given["cap_add"])
    container.capability_add.extend(sorted(added))
    container.capability_drop.extend(sorted(capabilities(given["cap_drop"]) - added))
    set_scalars(container, given)
    health = _health(given)
    if health is not None:
        container.healthcheck.CopyFrom(health)


def with_tag(image: str) -> str:
    """Docker's client names the tag that is meant; an id, a digest and what is no image are left alone."""
    has_tag = ":" in image.rsplit("/", 1)[-1] or "@" in image
    if has_tag or re.fullmatch(r"[a-f0-9]{64}", image) or not re.fullmatch(r"[\w./:\[\]-]+", image):
        return image
    return f"{image}:latest"


def set_scalars(container: pb.ContainerSpec, given: Given) -> None:
    """The container's fields that one flag sets as they are; those not given are left alone."""
    for flag, name in (
        ("hostname", "hostname"),
        ("workdir", "dir"),
        ("user", "user"),
        ("stop_signal", "stop_signal"),
        ("tty", "tty"),
        ("read_only", "read_only"),
        ("isolation", "isolation"),
        ("oom_score_adj", "oom_score_adj"),
        ("stop_grace_period", "stop_grace_period_ns"),
    ):
        if given[flag] is not None:
            setattr(container, name, given[flag])


def _mode(given: Given) -> pb.ServiceMode:
    mode = given["mode"] or "replicated"
    replicas, concurrent = given["replicas"], given["max_concurrent"]
    if mode not in ("replicated", "global", "replicated-job", "global-job"):
        raise CliError(
            f"Unknown mode: {mode}, only replicated, global, replicated-job and global-job supported"
        )
    if mode.startswith("global") and replicas is not None:
        raise CliError("replicas can only be used with replicated or replicated-job mode")
    if mode.startswith("global") and given["replicas_max_per_node"]:
        raise CliError("replicas-max-per-node can only be used with replicated or replicated-job mode")
    if mode != "replicated-job" and concurrent is not None:
        raise CliError("max-concurrent can only be used with replicated-job mode")
    if mode == "global":
        mode_message = pb.ServiceMode()
        # A keyword of Python: the field can only be named in a string.
        getattr(mode_message, "global").SetInParent()
        return mode_message
    if mode == "global-job":
        return pb.ServiceMode(global_job=pb.GlobalJobMode())
    if mode == "replicated":
        return pb.ServiceMode(replicated=pb.ReplicatedMode(replicas=replicas))
    return pb.ServiceMode(
        replicated_job=pb.ReplicatedJobMode(
            max_concurrent=replicas if concurrent is None else concurrent, total_completions=replicas
        )
    )


def _environment(given: Given) -> list[str]:
    """The files' variables, then the flags'; the last of a name wins."""
    variables: dict[str, str] = {}
    for entry in (*_env_files(given["env_file"]), *given["env"]):
        name = entry.partition("=")[0]
        if variables.get(name) != entry:
            variables.pop(name, None)
            variables[name] = entry
    return list(variables.values())


def _env_files(paths: Iterable[str]) -> Iterable[str]:
    for path in paths:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"open {path}: {getattr(error, 'strerror', None) or error}") from None
        for number, line in enumerate(lines, start=1):
            entry = line.lstrip()
            name, equals, _ = entry.partition("=")
            if not entry or entry.startswith("#"):
                continue
            if not name or " " in name or "\t" in name:
                raise CliError(
                    f"invalid env file ({path}): line {number}: variable '{name}' contains whitespaces"
                )
            if equals:
                yield entry
            elif name in os.environ:
                yield f"{name}={os.environ[name]}"


def _health(given: Given) -> pb.HealthConfig | None:
    changed = any(given[flag] is not None for flag in HEALTH_FLAGS)
    if given["no_healthcheck"]:
        if changed:
            raise CliError("--no-healthcheck conflicts with --health-* options")
        return pb.HealthConfig(test=["NONE"])
    if not changed:
        return None
    health = pb.HealthConfig()
    set_health(health, given)
    return health


def set_health(health: pb.HealthConfig, given: Given) -> None:
    if given["health_cmd"] is not None:
        del health.test[:]
        health.test.extend(["CMD-SHELL", given["health_cmd"]] if given["health_cmd"] else [])
    for flag, name in (
        ("health_interval", "interval_ns"),
        ("health_timeout", "timeout_ns"),
        ("health_retries", "retries"),
        ("health_start_period", "start_period_ns"),
        ("health_start_interval", "start_interval_ns"),
    ):
        if given[flag] is not None:
            setattr(health, name, given[flag])


def set_resources(resources: pb.ResourceRequirements, given: Given) -> None:
    for flag, target, name in (
        ("limit_cpu", resources.limits, "nano_cpus"),
        ("limit_memory", resources.limits, "memory_bytes"),
        ("limit_pids", resources.limits, "pids"),
        ("reserve_cpu", resources.reservations, "nano_cpus"),
        ("reserve_memory", resources.reservations, "memory_bytes"),
    ):
        if given[flag] is not None:
            setattr(target, name, given[flag])


def restart_changed(given: Given) -> bool:
    return any(
        given[f"restart_{name}"] is not None for name in ("condition", "delay", "max_attempts", "window")
    )


def set_restart_defaults(policy: pb.RestartPolicy) -> None:
    policy.condition = pb.RESTART_CONDITION_ANY
    policy.delay_ns = _RESTART_DELAY_NS
    policy.max_attempts = 0


def set_restart(policy: pb.RestartPolicy, given: Given) -> None:
    if given["restart_condition"] is not None:
        policy.condition = RESTART_CONDITIONS[given["restart_condition"]]
    if given["restart_delay"] is not None:
        policy.delay_ns = given["restart_delay"]
    if given["restart_max_attempts"] is not None:
        policy.max_attempts = given["restart_max_attempts"]
    if given["restart_window"] is not None:
        policy.window_ns = given["restart_window"]


def rollout_changed(given: Given, prefix: str) -> bool:
    return any(
        given[f"{prefix}_{name}"] is not None
        for name in ("parallelism", "delay", "monitor", "failure_action", "max_failure_ratio", "order")
    )


def set_rollout_defaults(config: pb.UpdateConfig) -> None:
    config.parallelism = 1
    config.monitor_ns = _UPDATE_MONITOR_NS


def set_rollout(config: pb.UpdateConfig, given: Given, prefix: str) -> None:
    for flag, name in (
        ("parallelism", "parallelism"),
        ("delay", "delay_ns"),
        ("monitor", "monitor_ns"),
        ("max_failure_ratio", "max_failure_ratio"),
    ):
        if given[f"{prefix}_{flag}"] is not None:
            setattr(config, name, given[f"{prefix}_{flag}"])
    if given[f"{prefix}_failure_action"] is not None:
        config.failure_action = FAILURE_ACTIONS[given[f"{prefix}_failure_action"]]
    if given[f"{prefix}_order"] is not None:
        config.order = UPDATE_ORDERS[given[f"{prefix}_order"]]


def set_log_driver(task: pb.TaskSpec, given: Given) -> None:
    task.log_driver.CopyFrom(pb.Driver(name=given["log_driver"], options=key_values(given["log_opt"])))


def key_values(entries: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` or `KEY` alone, which has an empty value."""
    return {key: value for key, _, value in (entry.partition("=") for entry in entries)}


def capabilities(names: Iterable[str]) -> set[str]:
    """Names as the kernel writes them, CAP_ in front; ALL swallows the rest."""
    normal = {name.strip().upper() for name in names}
    normal = {n if n in (ALL_CAPABILITIES, "RESET") or n.startswith("CAP_") else f"CAP_{n}" for n in normal}
    return {ALL_CAPABILITIES} if ALL_CAPABILITIES in normal else normal


def _distinct(references: Sequence[Any], what: str) -> Sequence[Any]:
    seen: set[str] = set()
    for reference in references:
        if reference.file.name in seen:
            name = getattr(reference, f"{what}_name")
            raise CliError(f"duplicate {what} target for {name} not allowed")
        seen.add(reference.file.name)
    return references
