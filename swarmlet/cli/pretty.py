"""`inspect --pretty`: services and nodes as Docker lays them out for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from swarmlet.api import pb
from swarmlet.cli.formatting import pretty_word
from swarmlet.cli.tasks import protocol_word
from swarmlet.cli.values import format_bytes, format_duration, human_duration

_NANO = 1_000_000_000


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", "-")


def _pairs(entries: Mapping[str, str], indent: str, separator: str = "=") -> Iterator[str]:
    for key in sorted(entries):
        yield f"{indent}{key}{separator}{entries[key]}" if entries[key] else f"{indent}{key}"


def _ago(stamp: Timestamp, now: datetime) -> str:
    return f"{human_duration((now - stamp.ToDatetime(tzinfo=UTC)).total_seconds())} ago"


def _cpus(nano: int) -> str:
    return f"{nano / _NANO:g}"


def pretty_service(service: pb.Service, now: datetime | None = None) -> str:
    at = now or datetime.now(UTC)
    spec = service.spec
    container = spec.task_template.container_spec
    lines = [
        "",
        f"ID:\t\t{service.id}",
        f"Name:\t\t{spec.name}",
        *(["Labels:", *_pairs(spec.labels, " ")] if spec.labels else []),
        *_mode(spec.mode),
        *_update_status(service.update_status, at),
        *_placement(spec.task_template.placement),
        *_rollout("UpdateConfig", "Update order:      ", spec, "update_config"),
        *_rollout("RollbackConfig", "Rollback order:    ", spec, "rollback_config"),
        "ContainerSpec:",
        f" Image:\t\t{container.image}",
        *_container(container),
        *_files("Configs", [(c.file.name, c.config_name) for c in container.configs]),
        *_files("Secrets", [(s.file.name, s.secret_name) for s in container.secrets]),
        *_log_driver(spec.task_template),
        *_resources(spec.task_template.resources),
    ]
    networks = [network.target for network in spec.task_template.networks]
    if networks:
        lines.append("Networks: " + " ".join(networks) + " ")
    lines.append(f"Endpoint Mode:\t{_word(pb.EndpointMode.Name(spec.endpoint_spec.mode), 'ENDPOINT_MODE_')}")
    lines += _ports(service.endpoint.ports)
    lines += _healthcheck(container)
    return "\n".join(lines)


def _mode(mode: pb.ServiceMode) -> Iterator[str]:
    kind = mode.WhichOneof("mode")
    if kind == "global":
        yield "Service Mode:\tGlobal"
    elif kind == "replicated":
        yield "Service Mode:\tReplicated"
        yield f" Replicas:\t{mode.replicated.replicas}"
    elif kind == "replicated_job":
        yield "Service Mode:\tReplicated Job"
        yield f" Completions:\t{mode.replicated_job.total_completions}"
    else:
        yield "Service Mode:\tGlobal Job"


def _update_status(status: pb.UpdateStatus, now: datetime) -> Iterator[str]:
    if status.state == pb.UPDATE_STATE_NONE:
        return
    yield "UpdateStatus:"
    yield f" State:\t\t{pb.UpdateState.Name(status.state).removeprefix('UPDATE_STATE_').lower()}"
    if status.HasField("started_at"):
        yield f" Started:\t{_ago(status.started_at, now)}"
    if status.HasField("completed_at"):
        yield f" Completed:\t{_ago(status.completed_at, now)}"
    yield f" Message:\t{status.message}"


def _placement(placement: pb.Placement) -> Iterator[str]:
    yield "Placement:"
    if placement.constraints:
        yield f" Constraints:\t[{' '.join(placement.constraints)}]"
    if placement.preferences:
        preferences = " ".join(f"spread={p.spread.spread_descriptor}" for p in placement.preferences)
        yield f" Preferences:   [{preferences}]"
    if placement.max_replicas:
        yield f" Max Replicas Per Node:   {placement.max_replicas}"


def _rollout(title: str, order_label: str, spec: pb.ServiceSpec, field: str) -> Iterator[str]:
    config = spec.update_config if field == "update_config" else spec.rollback_config
    if config == pb.UpdateConfig():
        return
    yield f"{title}:"
    yield f" Parallelism:\t{config.parallelism}"
    if config.delay_ns > 0:
        yield f" Delay:\t\t{format_duration(config.delay_ns)}"
    yield f" On failure:\t{_word(pb.FailureAction.Name(config.failure_action), 'FAILURE_ACTION_')}"
    if config.monitor_ns > 0:
        yield f" Monitoring Period: {format_duration(config.monitor_ns)}"
    yield f" Max failure ratio: {config.max_failure_ratio:g}"
    yield f" {order_label}{_word(pb.UpdateOrder.Name(config.order), 'UPDATE_ORDER_')}"


def _container(container: pb.ContainerSpec) -> Iterator[str]:
    if container.args:
        yield f" Args:\t\t{' '.join(container.args)} "
    if container.env:
        yield f" Env:\t\t{' '.join(container.env)} "
    if container.dir:
        yield f" Dir:\t\t{container.dir}"
    if container.HasField("init"):
        yield f" Init:\t\t{str(container.init).lower()}"
    if container.user:
        yield f" User: {container.user}"
    if container.capability_add or container.capability_drop:
        yield "Capabilities:"
        if container.capability_add:
            yield f" Add: {', '.join(container.capability_add)}"
        if container.capability_drop:
            yield f" Drop: {', '.join(container.capability_drop)}"
    if container.sysctls:
        yield "SysCtls:"
        yield from _pairs(container.sysctls, " ", ": ")
    if container.ulimits:
        yield "Ulimits:"
        yield from (f" {u.name}: {u.soft}:{u.hard}" for u in container.ulimits)
    if container.mounts:
        yield "Mounts:"
    for mount in container.mounts:
        yield f" Target:\t{mount.target}"
        yield f"  Source:\t{mount.source}"
        yield f"  ReadOnly:\t{str(mount.read_only).lower()}"
        yield f"  Type:\t\t{_word(pb.MountType.Name(mount.type), 'MOUNT_TYPE_')}"


def _files(title: str, files: list[tuple[str, str]]) -> Iterator[str]:
    if files:
        yield f"{title}:"
    for target, source in files:
        yield f" Target:\t{target}"
        yield f"  Source:\t{source}"


def _log_driver(task: pb.TaskSpec) -> Iterator[str]:
    if not task.HasField("log_driver"):
        return
    yield "Log Driver:"
    if task.log_driver.name:
        yield f" Name:\t\t{task.log_driver.name}"
    if task.log_driver.options:
        yield " LogOpts:"
        yield from _pairs(task.log_driver.options, "  ", ":       ")


def _resources(resources: pb.ResourceRequirements) -> Iterator[str]:
    yield "Resources:"
    for title, amount in (("Reservations", resources.reservations), ("Limits", resources.limits)):
        if not (amount.nano_cpus or amount.memory_bytes or amount.pids):
            continue
        yield f" {title}:"
        if amount.nano_cpus:
            yield f"  CPU:\t\t{_cpus(amount.nano_cpus)}"
        if amount.memory_bytes:
            yield f"  Memory:\t{format_bytes(amount.memory_bytes)}"
        if amount.pids:
            yield f"  PIDs:\t\t{amount.pids}"


def _ports(ports: Iterable[pb.PortConfig]) -> Iterator[str]:
    for number, port in enumerate(ports):
        if number == 0:
            yield "Ports:"
        yield f" PublishedPort = {port.published_port}"
        yield f"  Protocol = {protocol_word(port)}"
        yield f"  TargetPort = {port.target_port}"
        yield f"  PublishMode = {_word(pb.PublishMode.Name(port.publish_mode), 'PUBLISH_MODE_')}"


def _healthcheck(container: pb.ContainerSpec) -> Iterator[str]:
    if not container.HasField("healthcheck"):
        return
    health = container.healthcheck
    yield " Healthcheck:"
    yield f"  Interval = {format_duration(health.interval_ns)}"
    yield f"  Retries = {health.retries}"
    yield f"  StartPeriod =\t{format_duration(health.start_period_ns)}"
    yield f"  Timeout =\t{format_duration(health.timeout_ns)}"
    if health.test:
        yield "  Tests:"
        yield from (f"\t Test = {test}" for test in health.test)


def pretty_node(node: pb.Node) -> str:
    description = node.description
    engine = description.engine
    plugins: dict[str, list[str]] = {}
    for plugin in engine.plugins:
        plugins.setdefault(plugin.type, []).append(plugin.name)
    joined = node.created_at.ToDatetime(tzinfo=UTC)
    lines = [
        f"ID:\t\t\t{node.id}",
        *([f"Name:\t\t\t{node.spec.name}"] if node.spec.name else []),
        *(["Labels:", *_pairs(node.spec.labels, " - ")] if node.spec.labels else []),
        f"Hostname:              \t{description.hostname}",
        f"Joined at:             \t{joined:%Y-%m-%d %H:%M:%S}.{node.created_at.nanos:09d} +0000 utc",
        "Status:",
        f" State:\t\t\t{pretty_word(_word(pb.NodeState.Name(node.status.state), 'NODE_STATE_'))}",
        *([f" Message:              \t{pretty_word(node.status.message)}"] if node.status.message else []),
        " Availability:         \t"
        + pretty_word(_word(pb.NodeAvailability.Name(node.spec.availability), "NODE_AVAILABILITY_")),
        *([f" Address:\t\t{node.status.addr}"] if node.status.addr else []),
        *_manager_status(node),
        "Platform:",
        f" Operating System:\t{description.platform.os}",
        f" Architecture:\t\t{description.platform.architecture}",
        "Resources:",
        f" CPUs:\t\t\t{description.resources.nano_cpus // _NANO}",
        f" Memory:\t\t{format_bytes(description.resources.memory_bytes)}",
        *(["Plugins:"] if plugins else []),
        *(f" {kind}:\t\t{', '.join(plugins[kind])}" for kind in sorted(plugins)),
        f"Engine Version:\t\t{engine.engine_version}",
        *(["Engine Labels:", *_pairs(engine.labels, " - ")] if engine.labels else []),
        *([f"Runtime:\t\t{engine.runtime}"] if engine.runtime else []),
    ]
    if description.tls_info.trust_root:
        lines += ["TLS Info:", " TrustRoot:", description.tls_info.trust_root]
    return "\n".join(lines)


def _manager_status(node: pb.Node) -> Iterator[str]:
    if not node.HasField("manager_status"):
        return
    status = node.manager_status
    yield "Manager Status:"
    yield f" Address:\t\t{status.addr}"
    yield f" Raft Status:\t\t{pretty_word(_word(pb.Reachability.Name(status.reachability), 'REACHABILITY_'))}"
    yield f" Leader:\t\t{'Yes' if status.leader else 'No'}"
