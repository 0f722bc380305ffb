from __future__ import annotations

import grpc
import pytest

from swarmlet.api import errors


@pytest.mark.parametrize(
    "kind",
    [
        errors.InvalidArgument,
        errors.NotFound,
        errors.AlreadyExists,
        errors.Conflict,
        errors.FailedPrecondition,
        errors.PermissionDenied,
        errors.Unauthenticated,
        errors.Unavailable,
        errors.UnknownOutcome,
    ],
)
def test_an_error_survives_the_way_over_grpc(kind: type[errors.SwarmletError]) -> None:
    sent = kind("what was wrong")

    received = errors.from_code(sent.code, sent.message)

    assert type(received) is kind
    assert received.message == "what was wrong"
    assert 400 <= received.http_status < 600


def test_an_unknown_code_is_an_internal_error() -> None:
    received = errors.from_code(grpc.StatusCode.DATA_LOSS, "lost")

    assert type(received) is errors.SwarmletError
    assert received.http_status == 500


def test_a_follower_says_who_leads() -> None:
    error = errors.NotLeader("10.0.0.1:2377")

    assert error.leader_address == "10.0.0.1:2377"
    assert isinstance(error, errors.FailedPrecondition)
    assert errors.NotLeader().leader_address == ""
