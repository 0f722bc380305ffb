"""Flags against the bodies that Docker's own client (28.2, API 1.50) sends for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swarmlet.api import pb
from swarmlet.api.dockerjson import to_docker
from tests.unit.cli.fakes import FakeDaemon, service


def sent(daemon: FakeDaemon, *args: str) -> dict[str, Any]:
    result = daemon.run("service", "create", "-d", *args)
    assert result.exit_code == 0, result.output
    return to_docker(daemon.asked(pb.CreateServiceRequest)[-1].spec)


def changed(daemon: FakeDaemon, spec: pb.ServiceSpec, *args: str) -> dict[str, Any]:
    daemon.services["x"] = pb.Service(id="x", spec=spec, version=pb.Version(index=1))
    result = daemon.run("service", "update", "-d", *args, "x")
    assert result.exit_code == 0, result.output
    return to_docker(daemon.asked(pb.UpdateServiceRequest)[-1].spec)


def test_plain_service_is_sent_with_dockers_empty_parts(daemon: FakeDaemon) -> None:
    assert sent(daemon, "--name", "web", "nginx") == {
        "Name": "web",
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "nginx:latest", "Init": False, "DNSConfig": {}},
            "Resources": {"Limits": {}, "Reservations": {}},
            "Placement": {},
            "ForceUpdate": 0,
        },
        "Mode": {"Replicated": {}},
        "EndpointSpec": {"Mode": "vip"},
    }


def test_flags_of_the_rollout_and_the_restarts(daemon: FakeDaemon) -> None:
    spec = sent(
        daemon,
        *("--update-parallelism", "2", "--update-delay", "1s", "--update-order", "start-first"),
        *(
            "--update-monitor",
            "3s",
            "--update-failure-action",
            "rollback",
            "--update-max-failure-ratio",
            ".25",
        ),
        *("--rollback-delay", "2s"),
        *("--restart-condition", "on-failure", "--restart-delay", "1m30s", "--restart-max-attempts", "3"),
        "nginx:1",
    )

    assert spec["UpdateConfig"] == {
        "Parallelism": 2,
        "Delay": 1_000_000_000,
        "FailureAction": "rollback",
        "Monitor": 3_000_000_000,
        "MaxFailureRatio": 0.25,
        "Order": "start-first",
    }
    assert spec["RollbackConfig"] == {
        "Parallelism": 1,
        "Delay": 2_000_000_000,
        "FailureAction": "pause",
        "Monitor": 5_000_000_000,
        "MaxFailureRatio": 0,
        "Order": "stop-first",
    }
    assert spec["TaskTemplate"]["RestartPolicy"] == {
        "Condition": "on-failure",
        "Delay": 90_000_000_000,
        "MaxAttempts": 3,
    }


def test_flags_of_the_container(daemon: FakeDaemon) -> None:
    spec = sent(
        daemon,
        *("-e", "A=1", "-e", "B=2", "-e", "A=3", "--container-label", "c=d", "--hostname", "h", "-u", "u:g"),
        *("--mount", "type=bind,source=/a,target=/b,readonly,bind-propagation=rslave"),
        *("--mount", "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770"),
        *("--health-cmd", "true x", "--health-interval", "5s", "--health-retries", "3"),
        *("--host", "a:1.2.3.4", "--dns", "8.8.8.8", "-w", "/w", "--entrypoint", 'a "b c"'),
        *(
            "--tty",
            "--read-only",
            "--init",
            "--ulimit",
            "nofile=1:2",
            "--cap-add",
            "NET_ADMIN",
            "--cap-drop",
            "all",
        ),
        *("--sysctl", "a.b=1", "--stop-grace-period", "20s", "--stop-signal", "SIGINT"),
        *("--secret", "source=key,target=k,mode=0400", "nginx:1", "run", "--tty=false"),
    )

    assert spec["TaskTemplate"]["ContainerSpec"] == {
        "Image": "nginx:1",
        "Labels": {"c": "d"},
        "Command": ["a", "b c"],
        "Args": ["run", "--tty=false"],
        "Hostname": "h",
        "Env": ["B=2", "A=3"],
        "Dir": "/w",
        "User": "u:g",
        "Init": True,
        "StopSignal": "SIGINT",
        "TTY": True,
        "ReadOnly": True,
        "Mounts": [
            {
                "Type": "bind",
                "Source": "/a",
                "Target": "/b",
                "ReadOnly": True,
                "BindOptions": {"Propagation": "rslave"},
            },
            {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1048576, "Mode": 1016}},
        ],
        "StopGracePeriod": 20_000_000_000,
        "Healthcheck": {"Test": ["CMD-SHELL", "true x"], "Interval": 5_000_000_000, "Retries": 3},
        "Hosts": ["1.2.3.4 a"],
        "DNSConfig": {"Nameservers": ["8.8.8.8"]},
        "Secrets": [
            {"File": {"Name": "k", "UID": "0", "GID": "0", "Mode": 256}, "SecretID": "", "SecretName": "key"}
        ],
        "Sysctls": {"a.b": "1"},
        "CapabilityAdd": ["CAP_NET_ADMIN"],
        "CapabilityDrop": ["ALL"],
        "Ulimits": [{"Name": "nofile", "Hard": 2, "Soft": 1}],
    }


def test_flags_of_placement_resources_ports_and_networks(daemon: FakeDaemon) -> None:
    spec = sent(
        daemon,
        *("--replicas", "3", "-p", "8080:80", "-p", "published=53,target=53,protocol=udp,mode=host"),
        *("-p", "7000-7001:5", "--network", "name=back,alias=x", "--endpoint-mode", "dnsrr"),
        *("--constraint", "node.role==manager", "--placement-pref", "spread=node.labels.dc"),
        *(
            "--replicas-max-per-node",
            "2",
            "--limit-cpu",
            ".5",
            "--limit-memory",
            "512m",
            "--reserve-memory",
            "1g",
        ),
        *("--log-driver", "json-file", "--log-opt", "max-size=1m", "nginx:1"),
    )

    assert spec["Mode"] == {"Replicated": {"Replicas": 3}}
    assert spec["EndpointSpec"] == {
        "Mode": "dnsrr",
        "Ports": [
            {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
            {"Protocol": "udp", "TargetPort": 53, "PublishedPort": 53, "PublishMode": "host"},
            {"Protocol": "tcp", "TargetPort": 5, "PublishedPort": 7000, "PublishMode": "ingress"},
            {"Protocol": "tcp", "TargetPort": 5, "PublishedPort": 7001, "PublishMode": "ingress"},
        ],
    }
    task = spec["TaskTemplate"]
    assert task["Placement"] == {
        "Constraints": ["node.role==manager"],
        "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.dc"}}],
        "MaxReplicas": 2,
    }
    assert task["Resources"] == {
        "Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 536_870_912},
        "Reservations": {"MemoryBytes": 1_073_741_824},
    }
    assert task["LogDriver"] == {"Name": "json-file", "Options": {"max-size": "1m"}}
    assert task["Networks"] == [{"Target": "back", "Aliases": ["x"]}]


def test_environment_files_come_before_the_flags(daemon: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# note\nX=1\n  Y=a b\nHOME_THAT_IS_NOT_SET\n\n")

    spec = sent(daemon, "--env-file", str(tmp_path / "env"), "-e", "X=2", "nginx:1")

    assert spec["TaskTemplate"]["ContainerSpec"]["Env"] == ["Y=a b", "X=2"]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--limit-memory", "x"), """invalid argument "x" for "--limit-memory" flag: invalid size: 'x'"""),
        (
            ("--update-delay", "x"),
            'invalid argument "x" for "--update-delay" flag: time: invalid duration "x"',
        ),
        (("-p", "x"), 'invalid argument "x" for "-p, --publish" flag: invalid containerPort: x'),
        (
            ("--publish", "published=x,target=1"),
            'invalid argument "published=x,target=1" for "-p, --publish" flag: '
            "invalid published port (x): value must be an integer: invalid syntax",
        ),
        (
            ("--replicas", "x"),
            'invalid argument "x" for "--replicas" flag: strconv.ParseUint: parsing "x": invalid syntax',
        ),
        (
            ("--limit-cpu", "x"),
            'invalid argument "x" for "--limit-cpu" flag: failed to parse x as a rational number',
        ),
        (
            ("--mount", "x"),
            """invalid argument "x" for "--mount" flag: invalid field 'x' must be a key=value pair""",
        ),
        (("--name",), "flag needs an argument: --name"),
        (("-e",), "flag needs an argument: 'e' in -e"),
        (("--nope",), "unknown flag: --nope"),
        (("-z",), "unknown shorthand flag: 'z' in -z"),
        (
            ("--tty=maybe",),
            'invalid argument "maybe" for "--tty" flag: strconv.ParseBool: parsing "maybe": invalid syntax',
        ),
    ],
)
def test_wrong_flags_end_with_125_and_dockers_words(
    daemon: FakeDaemon, args: tuple[str, ...], text: str
) -> None:
    result = daemon.run("service", "create", *args)

    assert result.exit_code == 125
    assert result.stderr == (
        f"{text}\n\nUsage:  swarmlet service create [OPTIONS] IMAGE [COMMAND] [ARG...]\n\n"
        "Run 'swarmlet service create --help' for more information\n"
    )
    assert daemon.requests == []


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            ("--mode", "global", "--replicas", "3"),
            "replicas can only be used with replicated or replicated-job mode",
        ),
        (("--no-healthcheck", "--health-retries", "1"), "--no-healthcheck conflicts with --health-* options"),
        (
            ("--mode", "replicated-job", "--update-order", "stop-first"),
            "update and rollback configuration is not",
        ),
        (("--env-file", "/nowhere/env"), "open /nowhere/env: No such file or directory"),
        (("--mode", "x"), "Unknown mode: x"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    daemon: FakeDaemon, args: tuple[str, ...], text: str
) -> None:
    result = daemon.run("service", "create", *args, "nginx")

    assert result.exit_code == 1
    assert result.stderr.startswith(text)
    assert daemon.requests == []


def full_spec() -> pb.ServiceSpec:
    spec = service().spec
    container = spec.task_template.container_spec
    container.env.extend(["A=1", "B=2"])
    container.hosts.extend(["1.2.3.4 a", "1.2.3.4 b"])
    container.capability_add.append("CAP_NET_ADMIN")
    container.capability_drop.append("CAP_SYS_TIME")
    container.mounts.add(type=pb.MOUNT_TYPE_VOLUME, source="v", target="/v")
    container.healthcheck.test.extend(["CMD-SHELL", "x"])
    spec.labels["x"] = "y"
    spec.task_template.placement.constraints.append("node.role==manager")
    spec.endpoint_spec.ports.add(target_port=80, published_port=8080)
    return spec


def test_update_leaves_alone_what_no_flag_names(daemon: FakeDaemon) -> None:
    assert changed(daemon, full_spec()) == to_docker(full_spec())


def test_update_adds_and_removes_by_key(daemon: FakeDaemon) -> None:
    spec = changed(
        daemon,
        full_spec(),
        *("--image", "nginx:2", "--force", "--env-add", "A=9", "--env-rm", "B", "--args", 'q "r s"'),
        *("--label-rm", "x", "--label-add", "n=m", "--host-rm", "a", "--host-add", "c:5.6.7.8"),
        *("--publish-rm", "80", "--publish-add", "8081:80", "--mount-rm", "/v"),
        *("--constraint-rm", "node.role==manager", "--constraint-add", "a==b"),
    )

    container = spec["TaskTemplate"]["ContainerSpec"]
    assert container["Image"] == "nginx:2"
    assert container["Env"] == ["A=9"]
    assert container["Args"] == ["q", "r s"]
    assert container["Hosts"] == ["1.2.3.4 b", "5.6.7.8 c"]
    assert "Mounts" not in container
    assert spec["Labels"] == {"n": "m"}
    assert spec["TaskTemplate"]["ForceUpdate"] == 1
    assert spec["TaskTemplate"]["Placement"] == {"Constraints": ["a==b"]}
    assert spec["EndpointSpec"]["Ports"] == [
        {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8081, "PublishMode": "ingress"}
    ]


def test_adding_a_dropped_capability_only_takes_back_the_drop(daemon: FakeDaemon) -> None:
    container = changed(daemon, full_spec(), "--cap-add", "SYS_TIME", "--cap-drop", "NET_ADMIN")[
        "TaskTemplate"
    ]["ContainerSpec"]

    assert "CapabilityAdd" not in container
    assert "CapabilityDrop" not in container


def test_switches_can_be_turned_off(daemon: FakeDaemon) -> None:
    spec = full_spec()
    spec.task_template.container_spec.tty = True
    spec.task_template.container_spec.init = True

    container = changed(daemon, spec, "--tty=false", "--init=false", "--no-healthcheck")["TaskTemplate"][
        "ContainerSpec"
    ]

    assert "TTY" not in container
    assert container["Init"] is False
    assert container["Healthcheck"] == {"Test": ["NONE"]}


def test_rollback_goes_with_no_other_flag(daemon: FakeDaemon) -> None:
    daemon.services["x"] = service()

    refused = daemon.run("service", "update", "--rollback", "--force", "web")
    done = daemon.run("service", "update", "-d", "--rollback", "web")

    assert refused.exit_code == 125
    assert "other flags may not be combined with --rollback" in refused.stderr
    assert done.stdout == "web\n"
    assert daemon.asked(pb.UpdateServiceRequest)[0].rollback == "previous"
