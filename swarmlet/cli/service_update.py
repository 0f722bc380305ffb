"""What the flags of `service update` do to a service's spec.

Works on the spec as read from the cluster; lists are kept sorted where Docker sorts
them, so that an update that changes nothing does not replace tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, MutableSequence
from typing import Any

from swarmlet.api import pb
from swarmlet.cli.command import CliError
from swarmlet.cli.service_spec import (
    ALL_CAPABILITIES,
    ENDPOINT_MODES,
    HEALTH_FLAGS,
    Given,
    capabilities,
    key_values,
    restart_changed,
    rollout_changed,
    set_health,
    set_log_driver,
    set_resources,
    set_restart,
    set_restart_defaults,
    set_rollout,
    set_rollout_defaults,
    set_scalars,
    with_tag,
)

_MAY_GO_WITH_ROLLBACK = ("rollback", "detach", "quiet", "args_given")


def changed_beside_rollback(given: Given) -> bool:
    return any(value not in (None, ()) for flag, value in given.items() if flag not in _MAY_GO_WITH_ROLLBACK)


def apply_update(spec: pb.ServiceSpec, given: Given) -> None:
    """Changes `spec` in place. Raises CliError for what cannot be done to it."""
    task = spec.task_template
    container = task.container_spec
    _merge(spec.labels, given, "label")
    if given["image"] is not None:
        container.image = with_tag(given["image"])
    if given["force"]:
        task.force_update += 1
    _update_container(container, given)
    if any(
        given[f] is not None
        for f in ("limit_cpu", "limit_memory", "limit_pids", "reserve_cpu", "reserve_memory")
    ):
        set_resources(task.resources, given)
    _update_generic_resources(task, given)
    if restart_changed(given):
        if not task.HasField("restart_policy"):
            set_restart_defaults(task.restart_policy)
        set_restart(task.restart_policy, given)
    _update_placement(task, given)
    _update_networks(task, given)
    _update_mode(spec.mode, given)
    for prefix, field in (("update", "update_config"), ("rollback", "rollback_config")):
        if rollout_changed(given, prefix):
            config = getattr(spec, field)
            if not spec.HasField(field):  # type: ignore[arg-type]
                set_rollout_defaults(config)
            set_rollout(config, given, prefix)
    if given["endpoint_mode"] is not None:
        spec.endpoint_spec.mode = ENDPOINT_MODES[given["endpoint_mode"]]
    if given["publish_add"] or given["publish_rm"]:
        _update_ports(spec.endpoint_spec, given)
    if given["log_driver"]:
        set_log_driver(task, given)


def _update_container(container: pb.ContainerSpec, given: Given) -> None:
    _merge(container.labels, given, "container_label")
    _merge(container.sysctls, given, "sysctl")
    set_scalars(container, given)
    if given["init"] is not None:
        container.init = given["init"]
    if given["args_given"] is not None:
        _replace(container.args, given["args_given"])
    if given["entrypoint"] is not None:
        _replace(container.command, given["entrypoint"])
    _update_keyed(container.env, given, "env", lambda entry: entry.partition("=")[0])
    _update_keyed(container.mounts, given, "mount", lambda m: m.target, lambda m: (m.source, m.target))
    _update_keyed(container.ulimits, given, "ulimit", lambda u: u.name, lambda u: u.name)
    _update_keyed(container.secrets, given, "secret", lambda s: s.secret_name)
    _update_keyed(container.configs, given, "config", lambda c: c.config_name)
    _update_set(container.groups, given, "group")
    _update_set(container.dns_config.nameservers, given, "dns")
    _update_set(container.dns_config.search, given, "dns_search")
    _update_set(container.dns_config.options, given, "dns_option")
    _update_hosts(container, given)
    _update_health(container, given)
    _update_capabilities(container, given)


def _touched(given: Given, name: str) -> bool:
    return bool(given[f"{name}_add"] or given[f"{name}_rm"])


def _replace(target: MutableSequence[Any], items: Iterable[Any]) -> None:
    kept = list(items)
    del target[:]
    target.extend(kept)


def _merge(field: MutableMapping[str, str], given: Given, name: str) -> None:
    for key in key_values(given[f"{name}_rm"]):
        field.pop(key, None)
    field.update(key_values(given[f"{name}_add"]))


def _update_keyed(
    field: MutableSequence[Any],
    given: Given,
    name: str,
    key: Callable[[Any], str],
    order: Callable[[Any], Any] | None = None,
) -> None:
    """Removes by key, adds or replaces by key; keeps the order unless `order` sorts."""
    if not _touched(given, name):
        return
    removed = set(given[f"{name}_rm"])
    entries = {key(entry): entry for entry in field if key(entry) not in removed}
    entries.update({key(entry): entry for entry in given[f"{name}_add"]})
    _replace(field, sorted(entries.values(), key=order) if order else entries.values())


def _update_set(field: MutableSequence[str], given: Given, name: str) -> None:
    if _touched(given, name):
        _replace(field, sorted({*field, *given[f"{name}_add"]} - set(given[f"{name}_rm"])))


def _update_hosts(container: pb.ContainerSpec, given: Given) -> None:
    """Entries are "IP HOST [ALIAS...]"; a removal names a host, or a host and its address."""
    if not _touched(given, "host"):
        return
    removals = [entry.partition(":")[::2] for entry in given["host_rm"]]
    kept: list[str] = []
    for entry in container.hosts:
        address, *names = entry.split()
        names = [n for n in names if not any(n == host and ip in ("", address) for host, ip in removals)]
        if names:
            kept.append(" ".join((address, *names)))
    _replace(container.hosts, dict.fromkeys((*kept, *given["host_add"])))


def _update_health(container: pb.ContainerSpec, given: Given) -> None:
    changed = any(given[flag] is not None for flag in HEALTH_FLAGS)
    if given["no_healthcheck"]:
        if changed:
            raise CliError("--no-healthcheck conflicts with --health-* options")
        container.healthcheck.CopyFrom(pb.HealthConfig(test=["NONE"]))
    elif changed:
        if list(container.healthcheck.test) == ["NONE"]:
            del container.healthcheck.test[:]
        set_health(container.healthcheck, given)


def _update_capabilities(container: pb.ContainerSpec, given: Given) -> None:
    """Adding what was dropped only undoes the drop, and the other way round; adding wins."""
    if not (given["cap_add"] or given["cap_drop"]):
        return
    adding, dropping = capabilities(given["cap_add"]), capabilities(given["cap_drop"])
    added = set() if "RESET" in adding else capabilities(container.capability_add)
    dropped = set() if "RESET" in dropping else capabilities(container.capability_drop)
    adding, dropping = adding - {"RESET"}, dropping - {"RESET"} - adding
    undone_adds, undone_drops = added & dropping, dropped & adding
    added = (added - undone_adds) | (adding - undone_drops)
    dropped = (dropped - undone_drops) | (dropping - undone_adds)
    _replace(container.capability_add, _capability_list(added))
    _replace(container.capability_drop, _capability_list(dropped))


def _capability_list(names: set[str]) -> list[str]:
    return [ALL_CAPABILITIES] if ALL_CAPABILITIES in names else sorted(names)


def _update_generic_resources(task: pb.TaskSpec, given: Given) -> None:
    if not _touched(given, "generic_resource"):
        return
    resources = task.resources.reservations.generic_resources
    kinds = {r.discrete.kind: r for r in resources}
    for kind in given["generic_resource_rm"]:
        if kind not in kinds:
            raise CliError(f"could not find generic-resource `{kind}` to remove it")
        del kinds[kind]
    kinds.update({r.discrete.kind: r for r in given["generic_resource_add"]})
    _replace(resources, [kinds[kind] for kind in sorted(kinds)])


def _update_placement(task: pb.TaskSpec, given: Given) -> None:
    _update_set(task.placement.constraints, given, "constraint")
    if given["replicas_max_per_node"] is not None:
        task.placement.max_replicas = given["replicas_max_per_node"]
    if _touched(given, "placement_pref"):
        removed = {p.spread.spread_descriptor for p in given["placement_pref_rm"]}
        kept = [p for p in task.placement.preferences if p.spread.spread_descriptor not in removed]
        _replace(task.placement.preferences, [*kept, *given["placement_pref_add"]])


def _update_networks(task: pb.TaskSpec, given: Given) -> None:
    if not _touched(given, "network"):
        return
    removed = set(given["network_rm"])
    kept = [network for network in task.networks if network.target not in removed]
    for network in given["network_add"]:
        if any(network.target == other.target for other in kept):
            raise CliError(f"service is already attached to network {network.target}")
        kept.append(network)
    _replace(task.networks, sorted(kept, key=lambda network: str(network.target)))


def _update_mode(mode: pb.ServiceMode, given: Given) -> None:
    kind = mode.WhichOneof("mode")
    if given["replicas"] is not None:
        set_replicas(mode, given["replicas"], "replicas can only be used with replicated mode")
    if given["max_concurrent"] is not None:
        if kind != "replicated_job":
            raise CliError("max-concurrent can only be used with replicated-job mode")
        mode.replicated_job.max_concurrent = given["max_concurrent"]


def set_replicas(mode: pb.ServiceMode, replicas: int, refusal: str) -> None:
    """Raises CliError with `refusal` for a service without a number of tasks."""
    kind = mode.WhichOneof("mode")
    if kind == "replicated":
        mode.replicated.replicas = replicas
    elif kind == "replicated_job":
        mode.replicated_job.total_completions = replicas
    else:
        raise CliError(refusal)


def _update_ports(endpoint: pb.EndpointSpec, given: Given) -> None:
    def identity(port: pb.PortConfig) -> tuple[int, int, int, int]:
        return port.published_port, port.target_port, port.protocol, port.publish_mode

    def is_removed(port: pb.PortConfig) -> bool:
        return any(
            identity(port)[1:] == identity(removed)[1:] for ports in given["publish_rm"] for removed in ports
        )

    ports = {identity(port): port for port in endpoint.ports if not is_removed(port)}
    for added in given["publish_add"]:
        ports.update({identity(port): port for port in added})
    _replace(endpoint.ports, [ports[key] for key in sorted(ports)])
