"""Documents as Docker's API writes them (v1.41 and later) are read and written back key for key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from swarmlet.api import dockerjson, pb

DOCUMENTS = Path(__file__).parent / "documents"
KIND_OF: dict[str, type[Message]] = {
    "service": pb.Service,
    "global": pb.Service,
    "job": pb.Service,
    "task": pb.Task,
    "task_failed": pb.Task,
    "node": pb.Node,
    "cluster": pb.Cluster,
    "network": pb.Network,
    "secret": pb.Secret,
    "config": pb.Config,
}


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DOCUMENTS / f"{name}.json").read_text())
    return document


def every_key_changed(value: Any) -> Any:
    """The document with its keys in lower case, but not those that are the user's own."""
    if isinstance(value, list):
        return [every_key_changed(item) for item in value]
    if not isinstance(value, dict):
        return value
    own = {"Labels", "Options", "Sysctls", "DriverOpts"}
    return {
        key.lower(): item if key in own and isinstance(item, dict) else every_key_changed(item)
        for key, item in value.items()
    }


@pytest.mark.parametrize("name", KIND_OF)
def test_document_is_written_back_key_for_key(name: str) -> None:
    document = load(name)

    message = dockerjson.from_docker(KIND_OF[name], document)

    assert dockerjson.to_docker(message) == document


@pytest.mark.parametrize("name", KIND_OF)
def test_keys_are_read_in_any_case(name: str) -> None:
    document = load(name)

    message = dockerjson.from_docker(KIND_OF[name], every_key_changed(document))

    assert message == dockerjson.from_docker(KIND_OF[name], document)


def test_every_document_is_covered() -> None:
    assert {path.stem for path in DOCUMENTS.glob("*.json")} == set(KIND_OF)


def test_service_has_what_its_document_says() -> None:
    service = dockerjson.from_docker(pb.Service, load("service"))

    container = service.spec.task_template.container_spec
    assert service.id == "9mnpnzenvg8p8tdbtq4wvbkcz"
    assert service.version.index == 19
    assert service.created_at.nanos == 880_065_305
    assert container.env[2] == "WORDS=a b=c"
    assert container.HasField("init")
    assert not container.init
    assert container.privileges.seccomp.profile == b'{"a": 1}'
    assert [m.type for m in container.mounts] == [
        pb.MOUNT_TYPE_BIND,
        pb.MOUNT_TYPE_VOLUME,
        pb.MOUNT_TYPE_TMPFS,
    ]
    assert service.spec.task_template.restart_policy.condition == pb.RESTART_CONDITION_ON_FAILURE
    assert service.spec.task_template.restart_policy.HasField("delay_ns")
    assert service.spec.mode.WhichOneof("mode") == "replicated"
    assert service.spec.mode.replicated.HasField("replicas")
    assert service.spec.update_config.order == pb.UPDATE_ORDER_START_FIRST
    assert service.spec.endpoint_spec.ports[1].protocol == pb.PORT_PROTOCOL_UDP
    assert service.spec.endpoint_spec.ports[2].protocol == pb.PORT_PROTOCOL_SCTP
    assert service.update_status.state == pb.UPDATE_STATE_ROLLBACK_STARTED


def test_global_service_is_told_by_an_empty_object() -> None:
    service = dockerjson.from_docker(pb.Service, load("global"))

    assert service.spec.mode.WhichOneof("mode") == "global"


def test_secret_data_is_base64() -> None:
    assert dockerjson.from_docker(pb.Secret, load("secret")).spec.data == b"secret bytes\x00\xff"


def test_create_request_of_a_docker_client_is_read() -> None:
    request = json.loads(
        """{
          "Name": "web", "Labels": null, "Unheard": {"Of": [1, 2]},
          "TaskTemplate": {
            "ContainerSpec": {"Image": "nginx:alpine", "Args": null, "Mounts": [], "DNSConfig": {},
                              "Init": null, "Isolation": "default"},
            "Resources": {"Limits": {}, "Reservations": {}},
            "RestartPolicy": {"Condition": ""},
            "Placement": {"Platforms": null},
            "ForceUpdate": 0
          },
          "Mode": {"Replicated": {"Replicas": 3}, "Global": null},
          "EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]}
        }"""
    )

    spec = dockerjson.from_docker(pb.ServiceSpec, request)

    assert spec.name == "web"
    assert not spec.task_template.container_spec.HasField("init")
    assert spec.task_template.restart_policy.condition == pb.RESTART_CONDITION_ANY
    assert spec.mode.replicated.replicas == 3
    port = dockerjson.to_docker(spec)["EndpointSpec"]["Ports"][0]
    assert port == {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}


def test_objects_without_content_have_what_docker_always_writes() -> None:
    zero = "0001-01-01T00:00:00Z"

    service = dockerjson.to_docker(pb.Service())
    task = dockerjson.to_docker(pb.Task())
    node = dockerjson.to_docker(pb.Node())

    assert service == {
        "ID": "",
        "Version": {"Index": 0},
        "CreatedAt": zero,
        "UpdatedAt": zero,
        "Spec": {"Name": "", "Labels": {}, "TaskTemplate": {"ForceUpdate": 0}, "Mode": {}},
        "Endpoint": {"Spec": {"Mode": "vip"}},
    }
    assert task["Status"] == {"Timestamp": zero, "State": "new", "PortStatus": {}}
    assert task["DesiredState"] == "new"
    assert node["Spec"] == {"Labels": {}, "Role": "worker", "Availability": "active"}
    assert node["Status"] == {"State": "unknown"}
    assert node["Description"] == {"Platform": {}, "Resources": {}, "Engine": {}, "TLSInfo": {}}


def test_what_is_internal_is_neither_written_nor_read() -> None:
    cluster = pb.Cluster(root_ca=pb.RootCA(private_key_pem=b"SECRET KEY"))
    task = pb.Task(service_name="web", start_after=Timestamp(seconds=1))
    task.spec.container_spec.pull_auth = b"SECRET"

    document = dockerjson.dumps(cluster) + dockerjson.dumps(task)
    read = dockerjson.from_docker(
        pb.ContainerSpec, {"PullAuth": "U0VDUkVU", "pullAuth": "U0VDUkVU", "pull_auth": "U0VDUkVU"}
    )

    assert "web" not in document
    assert "SECRET" not in document
    assert "U0VDUkVU" not in document
    assert read == pb.ContainerSpec()


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (pb.TASK_STATE_NEW, "new"),
        (pb.TASK_STATE_PREPARING, "preparing"),
        (pb.TASK_STATE_COMPLETE, "complete"),
        (pb.TASK_STATE_SHUTDOWN, "shutdown"),
        (pb.TASK_STATE_REMOVE, "remove"),
        (pb.TASK_STATE_ORPHANED, "orphaned"),
    ],
)
def test_task_states_have_dockers_words(state: pb.TaskState.ValueType, word: str) -> None:
    assert dockerjson.to_docker(pb.TaskStatus(state=state))["State"] == word
    assert dockerjson.from_docker(pb.TaskStatus, {"State": word}).state == state


def test_a_word_of_a_newer_version_is_shown_by_its_number() -> None:
    status = pb.NodeStatus.FromString(b"\x08\x63")

    assert dockerjson.to_docker(status)["State"] == "99"


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.05, 1 / 3, 0.999999, 1e-7])
def test_a_ratio_is_written_as_short_as_go_writes_it(ratio: float) -> None:
    config = pb.UpdateConfig(max_failure_ratio=ratio)

    written = dockerjson.to_docker(config)["MaxFailureRatio"]

    assert len(repr(written)) <= len("0.33333334")
    assert pb.UpdateConfig(max_failure_ratio=written) == config


def test_the_largest_number_reads_back_from_its_shortest_form() -> None:
    config = pb.UpdateConfig(max_failure_ratio=3.4028234663852886e38)

    document = dockerjson.to_docker(config)

    assert document["MaxFailureRatio"] == 3.4028235e38
    assert dockerjson.from_docker(pb.UpdateConfig, document) == config


def test_text_is_one_line_of_json_in_utf8() -> None:
    service = pb.ServiceSpec(name="grün\n")

    text = dockerjson.dumps(service)

    assert text.startswith('{"Name":"grün\\n","Labels":{}')
    assert "\n" not in text


def test_what_json_cannot_hold_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dockerjson.dumps(pb.UpdateConfig(max_failure_ratio=float("nan")))
    with pytest.raises(ValueError, match="years 1 to 9999"):
        dockerjson.to_docker(pb.Secret(created_at=Timestamp(seconds=10**15)))
