"""Nothing is lost between a message and Docker's JSON, whatever the message holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmlet.api import dockerjson, pb
from swarmlet.api.errors import InvalidArgument
from tests.unit.api.strategies import messages, without_empty_always

KINDS: list[type[Message]] = [
    pb.Cluster,
    pb.Node,
    pb.Service,
    pb.Task,
    pb.Network,
    pb.Secret,
    pb.Config,
    pb.ContainerSpec,
    pb.UpdateConfig,
    pb.RestartPolicy,
    pb.ServiceMode,
]

slow_to_draw = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.DESCRIPTOR.name)
@slow_to_draw
@given(data=st.data())
def test_what_was_written_reads_back_the_same(kind: type[Message], data: st.DataObject) -> None:
    message = without_empty_always(data.draw(messages(kind)))

    read = dockerjson.from_docker(kind, json.loads(dockerjson.dumps(message)))

    assert read == message
    assert read.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.DESCRIPTOR.name)
@slow_to_draw
@given(data=st.data())
def test_what_was_read_is_written_the_same(kind: type[Message], data: st.DataObject) -> None:
    written = dockerjson.to_docker(data.draw(messages(kind)))

    assert dockerjson.to_docker(dockerjson.from_docker(kind, written)) == written


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(message=messages(pb.Service), data=st.data())
def test_a_document_with_anything_anywhere_is_read_or_refused(
    message: pb.Service, data: st.DataObject
) -> None:
    document = dockerjson.to_docker(message)
    _put_somewhere(document, data.draw(_JSON), data)

    try:
        read = dockerjson.from_docker(pb.Service, document)
    except InvalidArgument as error:
        assert "expected" in error.message or "only one of" in error.message
    else:
        assert dockerjson.from_docker(pb.Service, dockerjson.to_docker(read)) == without_empty_always(read)


def _put_somewhere(container: Any, value: Any, data: st.DataObject) -> None:
    """Replaces something, at any depth, by the value."""
    places = list(container) if isinstance(container, dict) else list(range(len(container)))
    place = data.draw(st.sampled_from(places))
    inner = container[place]
    if isinstance(inner, dict | list) and inner and data.draw(st.booleans()):
        _put_somewhere(inner, value, data)
    else:
        container[place] = value


def test_maps_of_messages_and_numbers_beyond_single_precision_survive() -> None:
    message = Struct()
    message.update(
        {"text": "x", "number": 0.1, "whole": 3, "yes": True, "none": None, "deep": {"a": [1, {}]}}
    )

    read = dockerjson.from_docker(Struct, json.loads(dockerjson.dumps(message)))

    assert read == message
