"""What does not fit is refused with its place; what Docker is lenient about is accepted."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from swarmlet.api import dockerjson, pb
from swarmlet.api.errors import InvalidArgument


def container(**fields: Any) -> dict[str, Any]:
    return {"Spec": {"TaskTemplate": {"ContainerSpec": fields}}}


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([], "the document: expected an object"),
        ({"ID": 1}, "ID: expected a string"),
        ({"spec": []}, "Spec: expected an object"),
        (
            container(Env=["A=1", "B=2", 3]),
            "Spec.TaskTemplate.ContainerSpec.Env[2]: expected a string",
        ),
        (container(Env="A=1"), "Spec.TaskTemplate.ContainerSpec.Env: expected a list"),
        (container(Labels=["a"]), "Spec.TaskTemplate.ContainerSpec.Labels: expected an object"),
        (container(Labels={"a": 1}), "Spec.TaskTemplate.ContainerSpec.Labels[a]: expected a string"),
        (container(TTY="yes"), "Spec.TaskTemplate.ContainerSpec.TTY: expected true or false"),
        (
            container(Mounts=[{"Type": "bind"}, 1]),
            "Spec.TaskTemplate.ContainerSpec.Mounts[1]: expected an object",
        ),
        (
            container(Mounts=[{"Type": "floppy"}]),
            'Spec.TaskTemplate.ContainerSpec.Mounts[0].Type: unknown word "floppy", '
            "expected one of bind, volume, tmpfs, npipe, cluster",
        ),
        (
            container(Mounts=[{"Type": 1}]),
            "Spec.TaskTemplate.ContainerSpec.Mounts[0].Type: "
            "expected one of bind, volume, tmpfs, npipe, cluster",
        ),
        (
            container(StopGracePeriod="10s"),
            "Spec.TaskTemplate.ContainerSpec.StopGracePeriod: "
            "expected a whole number from -9223372036854775808 to 9223372036854775807",
        ),
        ({"Version": {"Index": -1}}, "Version.Index: expected a whole number from 0 to 18446744073709551615"),
        (
            {"Version": {"Index": True}},
            "Version.Index: expected a whole number from 0 to 18446744073709551615",
        ),
        (
            {"Version": {"Index": 1.0}},
            "Version.Index: expected a whole number from 0 to 18446744073709551615",
        ),
        (
            {"Spec": {"EndpointSpec": {"Ports": [{"TargetPort": 2**32}]}}},
            "Spec.EndpointSpec.Ports[0].TargetPort: expected a whole number from 0 to 4294967295",
        ),
        (
            {"Spec": {"UpdateConfig": {"MaxFailureRatio": "0.1"}}},
            "Spec.UpdateConfig.MaxFailureRatio: expected a number",
        ),
        (
            {"Spec": {"UpdateConfig": {"MaxFailureRatio": 1e39}}},
            "Spec.UpdateConfig.MaxFailureRatio: expected a smaller number",
        ),
        (
            {"Spec": {"UpdateConfig": {"MaxFailureRatio": -(10**400)}}},
            "Spec.UpdateConfig.MaxFailureRatio: expected a smaller number",
        ),
        (
            {"Spec": {"UpdateConfig": {"MaxFailureRatio": float("nan")}}},
            "Spec.UpdateConfig.MaxFailureRatio: expected a number",
        ),
        (
            {"Spec": {"Mode": {"Replicated": {}, "Global": {}}}},
            "Spec.Mode.Global: only one of Replicated, Global, ReplicatedJob, GlobalJob can be given",
        ),
        ({"Spec": {"Name": "\ud800"}}, "Spec.Name: expected a string of valid Unicode"),
        ({"CreatedAt": 5}, "CreatedAt: expected a time as in RFC 3339"),
        ({"CreatedAt": "yesterday"}, "CreatedAt: expected a time as in RFC 3339"),
        ({"CreatedAt": "2026-02-30T00:00:00Z"}, "CreatedAt: expected a time as in RFC 3339"),
        ({"CreatedAt": "2026-01-01 00:00:00"}, "CreatedAt: expected a time as in RFC 3339"),
        ({"CreatedAt": "0001-01-01T00:00:00+01:00"}, "CreatedAt: expected a time in the years 1 to 9999"),
        ({"CreatedAt": "9999-12-31T23:59:59-01:00"}, "CreatedAt: expected a time in the years 1 to 9999"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(document: Any, complaint: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        dockerjson.from_docker(pb.Service, document)

    assert refused.value.message == complaint


@pytest.mark.parametrize("data", ["*", "YQ", "YQ==YQ==", "grün", 7, ["YQ=="]])
def test_data_that_is_not_base64_is_refused_without_being_shown(data: object) -> None:
    with pytest.raises(InvalidArgument) as refused:
        dockerjson.from_docker(pb.SecretSpec, {"Name": "key", "Data": data})

    assert refused.value.message == "Data: expected a string in base64"


@pytest.mark.parametrize("word", ["worker", "Manager", "DRAIN"])
def test_words_are_read_in_any_case(word: str) -> None:
    key = "Availability" if word == "DRAIN" else "Role"

    spec = dockerjson.from_docker(pb.NodeSpec, {key: word})

    assert dockerjson.to_docker(spec)[key] == word.lower()


def test_an_unknown_word_names_the_allowed_ones() -> None:
    with pytest.raises(InvalidArgument) as refused:
        dockerjson.from_docker(pb.UpdateStatus, {"State": "stuck"})

    assert refused.value.message == (
        'State: unknown word "stuck", expected one of updating, paused, completed, '
        "rollback_started, rollback_paused, rollback_completed"
    )


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"),
    [
        ("1970-01-01T00:00:00Z", 0, 0),
        ("1970-01-01t00:00:01z", 1, 0),
        ("1970-01-01T01:00:00+01:00", 0, 0),
        ("1969-12-31T19:00:00.5-05:00", 0, 500_000_000),
        ("1969-12-31T23:59:59.999999999Z", -1, 999_999_999),
        ("2026-03-07T21:05:51.8800653051234Z", 1_772_917_551, 880_065_305),
        ("0001-01-01T00:00:00.000000001Z", -62_135_596_800, 1),
    ],
)
def test_times_are_read_in_every_form_of_rfc_3339(text: str, seconds: int, nanos: int) -> None:
    secret = dockerjson.from_docker(pb.Secret, {"CreatedAt": text})

    assert (secret.created_at.seconds, secret.created_at.nanos) == (seconds, nanos)


def test_the_zero_time_is_no_time() -> None:
    status = dockerjson.from_docker(pb.UpdateStatus, {"StartedAt": dockerjson.ZERO_TIME})

    assert not status.HasField("started_at")


def test_the_epoch_is_a_time() -> None:
    status = dockerjson.from_docker(pb.UpdateStatus, {"StartedAt": "1970-01-01T00:00:00Z"})

    assert status.HasField("started_at")
    assert dockerjson.to_docker(status) == {"StartedAt": "1970-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("kind", "document", "same_as"),
    [
        (pb.ServiceSpec, {"Name": "web", "name": None}, {"Name": "web"}),
        (pb.ServiceSpec, {"Name": "first", "NAME": "last"}, {"Name": "last"}),
        (pb.ServiceSpec, {"Labels": {"a": None}}, {"Labels": {"a": ""}}),
        (pb.ContainerSpec, {"Env": ["A", None]}, {"Env": ["A", ""]}),
        (pb.ContainerSpec, {"Mounts": [None]}, {"Mounts": [{}]}),
        (pb.ServiceSpec, {"Whatever": object()}, {}),
        (pb.SecretSpec, {"Data": "YQ\r\n=="}, {"Data": "YQ=="}),
    ],
)
def test_what_go_lets_pass_passes(kind: type[Message], document: Any, same_as: Any) -> None:
    assert dockerjson.from_docker(kind, document) == dockerjson.from_docker(kind, same_as)
