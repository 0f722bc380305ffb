"""From a task's spec to the body of the engine's `POST /containers/create`.

Called by the docker runtime. Pure: no engine, no files. Names, labels and defaults
are Docker swarm's, so that tools that look at containers find what they know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from swarmlet.api import dockerjson, pb
from swarmlet.runtime.base import TaskRejected, TaskResources
from swarmlet.runtime.task_files import TaskFile
from swarmlet.runtime.templates import context_for, expand_container_spec, task_name

OWNER_LABEL: Final = "io.swarmlet.owner"
TASK_ID_LABEL: Final = "com.docker.swarm.task.id"

Json = dict[str, Any]


def container_config(
    task: pb.Task, resources: TaskResources, *, owner: str, files: Sequence[TaskFile]
) -> Json:
    """The body that creates the container of `task`. Raises TaskRejected for what no engine can do.

    `files` are the task's secrets and configs on this host, bound read-only to their targets.
    """
    spec = expand_container_spec(task.spec.container_spec, context_for(task, resources))
    if not spec.image:
        raise TaskRejected("the task names no image")
    config: Json = {
        "Image": spec.image,
        "Env": [*spec.env, *_generic_resources(task.assigned_generic_resources)],
        "Labels": {**spec.labels, **system_labels(task, owner)},
        "HostConfig": _host_config(task, spec, files),
        "ExposedPorts": {_port(port): {} for port in _ports(task)},
    }
    optional: Json = {
        "Entrypoint": list(spec.command),
        "Cmd": list(spec.args),
        "WorkingDir": spec.dir,
        "User": spec.user,
        "Hostname": spec.hostname,
        "Tty": spec.tty,
        "OpenStdin": spec.open_stdin,
        "StopSignal": spec.stop_signal,
    }
    config.update((name, value) for name, value in optional.items() if value)
    if spec.HasField("stop_grace_period_ns"):
        # The engine counts whole seconds; only who stops the container by hand depends on it.
        config["StopTimeout"] = -(-spec.stop_grace_period_ns // 10**9)
    if spec.HasField("healthcheck"):
        config["Healthcheck"] = dockerjson.to_docker(spec.healthcheck)
    return config


def system_labels(task: pb.Task, owner: str) -> dict[str, str]:
    """Docker swarm's labels and our own. A user's labels never replace them."""
    return {
        "com.docker.swarm.task": "",
        TASK_ID_LABEL: task.id,
        "com.docker.swarm.task.name": task_name(task),
        "com.docker.swarm.node.id": task.node_id or owner,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.service.name": task.service_name,
        OWNER_LABEL: owner,
    }


def endpoint_addresses(task: pb.Task, inspected: Mapping[str, Any]) -> list[pb.EndpointAddress]:
    """Where the ingress ports of an inspected, running container can be dialled on this host."""
    address = _address(inspected)
    if not address:
        return []
    targets = {(p.protocol, p.target_port) for p in _ports(task) if p.publish_mode == pb.PUBLISH_MODE_INGRESS}
    return [
        pb.EndpointAddress(protocol=protocol, target_port=port, address=address, port=port)
        for protocol, port in sorted(targets)
    ]


def port_status(task: pb.Task, inspected: Mapping[str, Any]) -> pb.PortStatus | None:
    """The host-mode ports as the engine published them, with the number it chose where none was asked for."""
    published = inspected.get("NetworkSettings", {}).get("Ports") or {}
    ports = []
    for port in _ports(task):
        if port.publish_mode != pb.PUBLISH_MODE_HOST:
            continue
        for binding in (published.get(_port(port)) or [])[:1]:
            found = pb.PortConfig()
            found.CopyFrom(port)
            found.published_port = int(binding["HostPort"])
            ports.append(found)
    return pb.PortStatus(ports=ports) if ports else None


def _host_config(task: pb.Task, spec: pb.ContainerSpec, files: Sequence[TaskFile]) -> Json:
    limits, reservations = task.spec.resources.limits, task.spec.resources.reservations
    config: Json = {
        # We restart by a new task; an engine that restarted this one would run it twice.
        "RestartPolicy": {"Name": "no"},
        "PortBindings": {
            _port(port): [{"HostPort": str(port.published_port) if port.published_port else ""}]
            for port in _ports(task)
            if port.publish_mode == pb.PUBLISH_MODE_HOST
        },
        "Mounts": [
            *(dockerjson.to_docker(mount) for mount in spec.mounts),
            *(
                {"Type": "bind", "Source": str(file.path), "Target": str(file.target), "ReadOnly": True}
                for file in files
            ),
        ],
    }
    optional: Json = {
        "NanoCpus": limits.nano_cpus,
        "Memory": limits.memory_bytes,
        "PidsLimit": limits.pids,
        "MemoryReservation": reservations.memory_bytes,
        "GroupAdd": list(spec.groups),
        "ReadonlyRootfs": spec.read_only,
        "CapAdd": list(spec.capability_add),
        "CapDrop": list(spec.capability_drop),
        "Sysctls": dict(spec.sysctls),
        "Ulimits": [dockerjson.to_docker(ulimit) for ulimit in spec.ulimits],
        "OomScoreAdj": spec.oom_score_adj,
        "Isolation": spec.isolation,
        "Dns": list(spec.dns_config.nameservers),
        "DnsSearch": list(spec.dns_config.search),
        "DnsOptions": list(spec.dns_config.options),
        "ExtraHosts": [host for line in spec.hosts for host in _extra_hosts(line)],
        "SecurityOpt": _security_options(spec.privileges),
    }
    config.update((name, value) for name, value in optional.items() if value)
    if spec.HasField("init"):
        config["Init"] = spec.init
    if task.spec.log_driver.name:
        config["LogConfig"] = {
            "Type": task.spec.log_driver.name,
            "Config": dict(task.spec.log_driver.options),
        }
    return config


def _ports(task: pb.Task) -> Sequence[pb.PortConfig]:
    return task.endpoint.ports or task.endpoint.spec.ports


def _port(port: pb.PortConfig) -> str:
    return f"{port.target_port}/{pb.PortProtocol.Name(port.protocol).removeprefix('PORT_PROTOCOL_').lower()}"


def _extra_hosts(line: str) -> list[str]:
    """The service API has the form of /etc/hosts, the container API HOST:IP."""
    words = line.split()
    if len(words) < 2:
        raise TaskRejected(f"invalid host entry {line!r}: write IP HOST [ALIAS...]")
    return [f"{name}:{words[0]}" for name in words[1:]]


def _generic_resources(assigned: Sequence[pb.GenericResource]) -> list[str]:
    values: dict[str, list[str]] = {}
    for entry in assigned:
        if entry.HasField("named"):
            values.setdefault(entry.named.kind, []).append(entry.named.value)
        else:
            values.setdefault(entry.discrete.kind, []).append(str(entry.discrete.value))
    return [f"DOCKER_RESOURCE_{kind.upper()}={','.join(found)}" for kind, found in sorted(values.items())]


def _security_options(privileges: pb.Privileges) -> list[str]:
    options = []
    if privileges.no_new_privileges:
        options.append("no-new-privileges")
    if privileges.seccomp.mode == "unconfined":
        options.append("seccomp=unconfined")
    elif privileges.seccomp.profile:
        options.append("seccomp=" + privileges.seccomp.profile.decode(errors="replace"))
    if privileges.apparmor.mode == "disabled":
        options.append("apparmor=unconfined")
    selinux = privileges.selinux_context
    if selinux.disable:
        options.append("label=disable")
    for name in ("user", "role", "type", "level"):
        if value := getattr(selinux, name):
            options.append(f"label={name}:{value}")
    return options


def _address(inspected: Mapping[str, Any]) -> str:
    settings = inspected.get("NetworkSettings", {})
    if settings.get("IPAddress"):
        return str(settings["IPAddress"])
    for network in (settings.get("Networks") or {}).values():
        if network.get("IPAddress"):
            return str(network["IPAddress"])
    return ""
