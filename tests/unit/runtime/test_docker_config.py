from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from swarmlet.api import pb
from swarmlet.runtime.base import TaskRejected
from swarmlet.runtime.docker_config import container_config, endpoint_addresses, port_status
from swarmlet.runtime.task_files import TaskFile
from tests.unit.runtime.builders import RESOURCES, make_task

RUNNING = {
    "NetworkSettings": {
        "Networks": {"bridge": {"IPAddress": "172.17.0.5"}},
        "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}], "53/udp": None},
    }
}


def config_of(task: pb.Task, *files: TaskFile) -> dict[str, object]:
    return container_config(task, RESOURCES, owner="node1", files=files)


def host_config_of(task: pb.Task, *files: TaskFile) -> dict[str, object]:
    host = config_of(task, *files)["HostConfig"]
    assert isinstance(host, dict)
    return host


def test_what_the_spec_leaves_open_is_the_images() -> None:
    config = config_of(make_task("t1"))

    assert not {"Cmd", "Entrypoint", "WorkingDir", "User", "StopSignal", "Healthcheck"} & config.keys()


def test_command_replaces_the_entrypoint_and_args_the_command() -> None:
    config = config_of(make_task("t1", "-v", command=["/bin/server"]))

    assert (config["Entrypoint"], config["Cmd"]) == (["/bin/server"], ["-v"])


def test_engine_never_restarts_a_task() -> None:
    assert host_config_of(make_task("t1"))["RestartPolicy"] == {"Name": "no"}


def test_labels_of_a_user_never_replace_the_systems() -> None:
    task = make_task("t1", labels={"io.swarmlet.owner": "me", "com.docker.swarm.task.id": "x", "mine": "1"})

    labels = config_of(task)["Labels"]

    assert isinstance(labels, dict)
    assert labels["io.swarmlet.owner"] == "node1"
    assert labels["com.docker.swarm.task.id"] == "t1"
    assert labels["com.docker.swarm.task.name"] == "web.1.t1"
    assert labels["mine"] == "1"


def test_only_host_mode_ports_are_published_by_the_engine() -> None:
    task = make_task("t1")
    task.endpoint.ports.add(target_port=80, published_port=8080)
    task.endpoint.ports.add(
        target_port=53,
        published_port=5353,
        protocol=pb.PORT_PROTOCOL_UDP,
        publish_mode=pb.PUBLISH_MODE_HOST,
    )

    assert host_config_of(task)["PortBindings"] == {"53/udp": [{"HostPort": "5353"}]}
    assert config_of(task)["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}


def test_secrets_are_bound_read_only_to_their_targets() -> None:
    file = TaskFile(Path("/dev/shm/x/t1/0"), PurePosixPath("/run/secrets/pw"))

    assert host_config_of(make_task("t1"), file)["Mounts"] == [
        {"Type": "bind", "Source": "/dev/shm/x/t1/0", "Target": "/run/secrets/pw", "ReadOnly": True}
    ]


def test_mounts_keep_their_options() -> None:
    volume = pb.Mount(type=pb.MOUNT_TYPE_VOLUME, source="data-{{.Task.Slot}}", target="/data")
    volume.volume_options.driver_config.name = "local"
    tmpfs = pb.Mount(type=pb.MOUNT_TYPE_TMPFS, target="/tmp")
    tmpfs.tmpfs_options.size_bytes = 1 << 20

    mounts = host_config_of(make_task("t1", mounts=[volume, tmpfs]))["Mounts"]

    assert isinstance(mounts, list)
    assert mounts[0]["Source"] == "data-1"
    assert mounts[0]["VolumeOptions"]["DriverConfig"]["Name"] == "local"
    assert (mounts[1]["Type"], mounts[1]["TmpfsOptions"]["SizeBytes"]) == ("tmpfs", 1 << 20)


def test_resources_and_log_driver_are_the_engines_to_enforce() -> None:
    task = make_task("t1")
    task.spec.resources.limits.CopyFrom(pb.Resources(nano_cpus=10**9, memory_bytes=1 << 30, pids=5))
    task.spec.resources.reservations.memory_bytes = 1 << 20
    task.spec.log_driver.CopyFrom(pb.Driver(name="json-file", options={"max-size": "1m"}))

    host = host_config_of(task)

    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (10**9, 1 << 30, 5)
    assert host["MemoryReservation"] == 1 << 20
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m"}}


def test_privileges_become_security_options() -> None:
    privileges = pb.Privileges(no_new_privileges=True)
    privileges.selinux_context.user = "u"
    privileges.seccomp.mode = "unconfined"

    assert host_config_of(make_task("t1", privileges=privileges))["SecurityOpt"] == [
        "no-new-privileges",
        "seccomp=unconfined",
        "label=user:u",
    ]


def test_assigned_generic_resources_are_in_the_environment() -> None:
    task = make_task("t1")
    for value in ("gpu-1", "gpu-2"):
        task.assigned_generic_resources.add().named.CopyFrom(pb.NamedGenericResource(kind="gpu", value=value))

    assert config_of(task)["Env"] == ["DOCKER_RESOURCE_GPU=gpu-1,gpu-2"]


def test_malformed_host_entry_is_rejected() -> None:
    with pytest.raises(TaskRejected, match="invalid host entry 'db'"):
        config_of(make_task("t1", hosts=["db"]))


def test_ingress_ports_are_dialled_at_the_containers_address_and_host_ports_reported() -> None:
    task = make_task("t1")
    task.endpoint.ports.add(target_port=8080, published_port=80)
    task.endpoint.ports.add(target_port=80, publish_mode=pb.PUBLISH_MODE_HOST)

    [endpoint] = endpoint_addresses(task, RUNNING)
    status = port_status(task, RUNNING)

    assert (endpoint.address, endpoint.port, endpoint.target_port) == ("172.17.0.5", 8080, 8080)
    assert status is not None
    assert [port.published_port for port in status.ports] == [32768]


def test_container_that_does_not_run_has_no_address() -> None:
    task = make_task("t1")
    task.endpoint.ports.add(target_port=8080)

    assert endpoint_addresses(task, {}) == []
    assert port_status(task, {}) is None
