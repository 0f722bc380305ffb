"""What makes a service's spec valid, and what its author is told when it is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import FailedPrecondition, InvalidArgument
from swarmlet.control.images import is_image_reference
from swarmlet.control.service_spec import fill_defaults, validate_service_spec
from tests.unit.control.fakes import a_spec

MIB = 1 << 20


def a_valid_spec() -> pb.ServiceSpec:
    spec = a_spec()
    fill_defaults(spec)
    return spec


def refusal(change: Callable[[pb.ServiceSpec], object]) -> str:
    spec = a_valid_spec()
    change(spec)
    with pytest.raises(InvalidArgument) as caught:
        validate_service_spec(spec)
    return caught.value.message


def container(spec: pb.ServiceSpec) -> pb.ContainerSpec:
    return spec.task_template.container_spec


def test_an_absent_mode_means_one_replica() -> None:
    spec = a_spec()

    fill_defaults(spec)

    assert spec.mode.replicated.replicas == 1


def test_zero_replicas_that_were_asked_for_stay_zero() -> None:
    spec = a_spec()
    spec.mode.replicated.replicas = 0

    fill_defaults(spec)

    assert spec.mode.replicated.HasField("replicas")
    assert spec.mode.replicated.replicas == 0


def test_networks_in_dockers_older_place_move_to_the_template() -> None:
    spec = a_spec(networks=[pb.NetworkAttachmentConfig(target="front")])

    fill_defaults(spec)

    assert [n.target for n in spec.task_template.networks] == ["front"]
    assert not spec.networks


@pytest.mark.parametrize("name", ["web", "a", "Web-1", "a__b", "x" * 63])
def test_a_dns_label_is_a_name(name: str) -> None:
    spec = a_valid_spec()
    spec.name = name

    validate_service_spec(spec)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "meta: name must be provided"),
        ("-web", "name must be valid as a DNS name component"),
        ("web-", "name must be valid as a DNS name component"),
        ("web.front", "name must be valid as a DNS name component"),
        ("web\n", "name must be valid as a DNS name component"),
        ("wéb", "name must be valid as a DNS name component"),
        ("x" * 64, "name must be 63 characters or fewer"),
    ],
)
def test_other_names_are_refused(name: str, text: str) -> None:
    assert refusal(lambda spec: setattr(spec, "name", name)) == text


@pytest.mark.parametrize(
    "image",
    [
        "nginx",
        "nginx:1.25",
        "library/nginx",
        "localhost:5000/team/app_x:v1.0-rc.1",
        "Registry.example.com/a/b__c",
        "[::1]:5000/app",
        "app@sha256:" + "a" * 64,
        "app:1@sha256:" + "0" * 64,
    ],
)
def test_an_image_reference_is_accepted(image: str) -> None:
    assert is_image_reference(image)


@pytest.mark.parametrize(
    "image",
    [
        "",
        "Nginx",
        "nginx:",
        "nginx:-x",
        "nginx: 1",
        "a//b",
        "a/-b",
        "app@sha256:short",
        "a" * 256,
        "f" * 64,
        "http://nginx",
        "nginx\n",
    ],
)
def test_what_cannot_be_an_image_is_not_a_reference(image: str) -> None:
    assert not is_image_reference(image)


def test_a_missing_image_and_a_wrong_one_are_told_apart() -> None:
    missing = refusal(lambda spec: container(spec).ClearField("image"))
    wrong = refusal(lambda spec: setattr(container(spec), "image", "NGINX:1"))

    assert missing == "ContainerSpec: image reference must be provided"
    assert wrong == 'ContainerSpec: "NGINX:1" is not a valid repository/tag'


@pytest.mark.parametrize("part", ["limits", "reservations"])
@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("nano_cpus", 999_999, "invalid cpu value 0.000999999: Must be at least 0.001"),
        ("nano_cpus", -1_000_000_000, "invalid cpu value -1: Must be at least 0.001"),
        ("memory_bytes", 4 * MIB - 1, "invalid memory value 4194303: Must be at least 4MiB"),
        ("memory_bytes", -1, "invalid memory value -1: Must be at least 4MiB"),
        ("pids", -1, "invalid pids value -1: Must not be negative"),
    ],
)
def test_resources_have_a_minimum(part: str, field: str, value: int, text: str) -> None:
    assert refusal(lambda s: setattr(getattr(s.task_template.resources, part), field, value)) == text


def test_the_smallest_resources_are_accepted() -> None:
    spec = a_valid_spec()
    spec.task_template.resources.limits.nano_cpus = 1_000_000
    spec.task_template.resources.limits.memory_bytes = 4 * MIB

    validate_service_spec(spec)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda s: setattr(s.task_template.restart_policy, "delay_ns", -1),
            "TaskSpec: restart-delay cannot be negative",
        ),
        (
            lambda s: setattr(s.task_template.restart_policy, "window_ns", -1),
            "TaskSpec: restart-window cannot be negative",
        ),
        (lambda s: setattr(s.update_config, "delay_ns", -1), "TaskSpec: update-delay cannot be negative"),
        (lambda s: setattr(s.update_config, "monitor_ns", -1), "TaskSpec: update-monitor cannot be negative"),
        (
            lambda s: setattr(s.update_config, "max_failure_ratio", 1.5),
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        ),
        (
            lambda s: setattr(s.update_config, "max_failure_ratio", math.nan),
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        ),
        (
            lambda s: setattr(s.rollback_config, "max_failure_ratio", -0.5),
            "TaskSpec: rollback-maxfailureratio cannot be less than 0 or bigger than 1",
        ),
        (
            lambda s: s.task_template.placement.constraints.append("node.role = manager"),
            "constraint expected one operator from ==, !=",
        ),
        (
            lambda s: setattr(s.task_template, "runtime", "plugin"),
            "RuntimeSpec: unimplemented runtime in service spec",
        ),
        (
            lambda s: setattr(s.mode.replicated, "replicas", 2**64 - 1),
            "Number of replicas must be non-negative",
        ),
        (
            lambda s: setattr(container(s), "stop_grace_period_ns", -1),
            "ContainerSpec: stop-grace-period cannot be negative",
        ),
        (
            lambda s: setattr(container(s).healthcheck, "interval_ns", 999_999),
            "ContainerSpec: Interval in HealthConfig cannot be less than 1ms",
        ),
        (
            lambda s: setattr(container(s).healthcheck, "timeout_ns", -1),
            "ContainerSpec: Timeout in HealthConfig cannot be less than 1ms",
        ),
        (
            lambda s: setattr(container(s).healthcheck, "start_period_ns", 1),
            "ContainerSpec: StartPeriod in HealthConfig cannot be less than 1ms",
        ),
        (
            lambda s: setattr(container(s).healthcheck, "start_interval_ns", 1),
            "ContainerSpec: StartInterval in HealthConfig cannot be less than 1ms",
        ),
        (
            lambda s: setattr(container(s).healthcheck, "retries", -1),
            "ContainerSpec: Retries in HealthConfig cannot be negative",
        ),
    ],
)
def test_an_impossible_setting_is_refused(change: Callable[[pb.ServiceSpec], object], text: str) -> None:
    assert refusal(change) == text


@pytest.mark.parametrize(
    ("mount", "text"),
    [
        (pb.Mount(source="/a", target="b"), "invalid mount target, must be an absolute path: b"),
        (pb.Mount(source="a", target="/b"), "invalid bind mount source, must be an absolute path: a"),
        (
            pb.Mount(type=pb.MOUNT_TYPE_VOLUME, source="/a", target="/b"),
            "invalid volume mount source, must not be an absolute path: /a",
        ),
        (
            pb.Mount(type=pb.MOUNT_TYPE_TMPFS, source="a", target="/b"),
            "invalid tmpfs source, source must be empty",
        ),
    ],
)
def test_a_mount_must_make_sense(mount: pb.Mount, text: str) -> None:
    assert refusal(lambda spec: container(spec).mounts.append(mount)) == text


def test_two_mounts_cannot_have_one_target() -> None:
    mounts = [pb.Mount(source="/a", target="/x"), pb.Mount(source="/b", target="/x")]

    assert (
        refusal(lambda spec: container(spec).mounts.extend(mounts))
        == "ContainerSpec: duplicate mount point: /x"
    )


def a_port(target: int = 80, published: int = 8080, **fields: object) -> pb.PortConfig:
    return pb.PortConfig(target_port=target, published_port=published, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        (
            [a_port(target=0)],
            "EndpointSpec: invalid target port 0: Must be between 1 and 65535",
        ),
        (
            [a_port(target=65536)],
            "EndpointSpec: invalid target port 65536: Must be between 1 and 65535",
        ),
        (
            [a_port(published=65536)],
            "EndpointSpec: invalid published port 65536: Must be at most 65535",
        ),
        (
            [a_port(), a_port(target=81)],
            "EndpointSpec: duplicate published ports provided",
        ),
    ],
)
def test_ports_have_a_range_and_one_use(ports: list[pb.PortConfig], text: str) -> None:
    assert refusal(lambda spec: spec.endpoint_spec.ports.extend(ports)) == text


def test_the_same_port_of_two_protocols_or_chosen_by_the_cluster_is_no_duplicate() -> None:
    spec = a_valid_spec()
    spec.endpoint_spec.ports.extend(
        [
            a_port(),
            a_port(protocol=pb.PORT_PROTOCOL_UDP),
            a_port(published=0),
            a_port(published=0),
        ]
    )

    validate_service_spec(spec)


def test_dnsrr_goes_with_host_ports_only() -> None:
    spec = a_valid_spec()
    spec.endpoint_spec.mode = pb.ENDPOINT_MODE_DNSRR
    spec.endpoint_spec.ports.append(a_port(publish_mode=pb.PUBLISH_MODE_HOST))

    validate_service_spec(spec)

    spec.endpoint_spec.ports[0].publish_mode = pb.PUBLISH_MODE_INGRESS
    with pytest.raises(
        InvalidArgument,
        match="EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
    ):
        validate_service_spec(spec)


def a_secret_reference(
    object_id: str = "s1", name: str = "key", file: str = "/run/secrets/key"
) -> pb.SecretReference:
    return pb.SecretReference(secret_id=object_id, secret_name=name, file=pb.FileTarget(name=file))


@pytest.mark.parametrize(
    ("references", "text"),
    [
        ([a_secret_reference(object_id="")], "malformed secret reference"),
        ([a_secret_reference(name="")], "malformed secret reference"),
        (
            [a_secret_reference(file="")],
            "malformed file secret reference, invalid target file name provided",
        ),
        (
            [a_secret_reference(), a_secret_reference("s2", "other")],
            "secret references 'key' and 'other' have a conflicting target: '/run/secrets/key'",
        ),
    ],
)
def test_a_secret_reference_is_whole_and_has_its_own_file(
    references: list[pb.SecretReference], text: str
) -> None:
    assert refusal(lambda spec: container(spec).secrets.extend(references)) == text


def test_a_config_for_the_runtime_needs_no_file() -> None:
    spec = a_valid_spec()
    container(spec).configs.add(config_id="c1", config_name="conf").runtime.SetInParent()
    container(spec).privileges.credential_spec.config = "c1"

    validate_service_spec(spec)


def test_a_credential_spec_needs_its_config() -> None:
    text = refusal(lambda s: setattr(container(s).privileges.credential_spec, "config", "c1"))

    assert text == (
        "CredentialSpec references config 'c1', but that config isn't in config references with RuntimeTarget"
    )


def test_a_nameless_config_for_the_runtime_is_malformed() -> None:
    def change(spec: pb.ServiceSpec) -> None:
        container(spec).configs.add(config_id="c1").runtime.SetInParent()

    assert refusal(change) == "malformed config reference"


@pytest.mark.parametrize("mode", ["replicated_job", "global_job"])
def test_jobs_are_refused_as_not_supported(mode: str) -> None:
    spec = a_valid_spec()
    getattr(spec.mode, mode).SetInParent()

    with pytest.raises(FailedPrecondition, match=f"service mode {mode.replace('_', '-')} is not supported"):
        validate_service_spec(spec)


def test_a_global_service_is_accepted() -> None:
    spec = a_valid_spec()
    getattr(spec.mode, "global").SetInParent()

    validate_service_spec(spec)
