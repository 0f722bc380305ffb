"""What can go wrong between a user and the cluster, as a small hierarchy.

Raised where it is known, mapped once to gRPC codes (and to HTTP statuses) by
number. The text of an error is what the user sees: it says what was wrong,
where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class SwarmletError(Exception):
    """Base of every error that is meant for a user."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500

    @property
    def message(self) -> str:
        return str(self)


class InvalidArgument(SwarmletError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400


class NotFound(SwarmletError):
    code = grpc.StatusCode.NOT_FOUND
    http_status = 404


class AlreadyExists(SwarmletError):
    """A name or id is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409


class Conflict(SwarmletError):
    """The object changed since the caller read it; read it again and retry."""

    code = grpc.StatusCode.ABORTED
    http_status = 409


class FailedPrecondition(SwarmletError):
    """The cluster or the object is not in a state that allows it."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 400


class PermissionDenied(SwarmletError):
    code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403


class Unauthenticated(SwarmletError):
    code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401


class Unavailable(SwarmletError):
    """Nothing was done; trying again later may work."""

    code = grpc.StatusCode.UNAVAILABLE
    http_status = 503


class UnknownOutcome(SwarmletError):
    """It may or may not have been done; repeating it with the same operation id is safe."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504


class NotLeader(FailedPrecondition):
    """This manager does not lead. `leader_address` is empty while there is no leader."""

    def __init__(self, leader_address: str = "") -> None:
        super().__init__("this manager is not the leader")
        self.leader_address = leader_address


_BY_CODE: dict[grpc.StatusCode, type[SwarmletError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        Conflict,
        FailedPrecondition,
        PermissionDenied,
        Unauthenticated,
        Unavailable,
        UnknownOutcome,
    )
}


def from_code(code: grpc.StatusCode, message: str) -> SwarmletError:
    """The error that a peer raised, from what gRPC carried of it.

    gRPC itself says UNAVAILABLE also when a connection broke during a call: who sent a
    write then does not know whether it was done.
    """
    return _BY_CODE.get(code, SwarmletError)(message)
