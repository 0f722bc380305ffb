"""The kinds of objects as the raft log and snapshots carry them: one of several in a wrapper."""

from __future__ import annotations

from swarmlet.api import pb
from swarmlet.store.tables import StoredObject, T

FIELD_OF: dict[type[StoredObject], str] = {
    pb.Cluster: "cluster",
    pb.Node: "node",
    pb.Service: "service",
    pb.Task: "task",
    pb.Network: "network",
    pb.Secret: "secret",
    pb.Config: "config",
}


def unwrap(wrapped: pb.StoreObject) -> StoredObject:
    field = wrapped.WhichOneof("object")
    if field is None:
        raise ValueError("store object without content: written by a newer version?")
    value: StoredObject = getattr(wrapped, field)
    return value


def wrap(value: StoredObject) -> pb.StoreObject:
    wrapped = pb.StoreObject()
    getattr(wrapped, FIELD_OF[type(value)]).CopyFrom(value)
    return wrapped


def kind_of(value: StoredObject) -> str:
    """ "service", "task", ...: the word used in watches and events."""
    return FIELD_OF[type(value)]


def detached(value: StoredObject) -> StoredObject:
    """A copy with memory of its own: a part of a message keeps the whole message alive."""
    copy = type(value)()
    copy.MergeFrom(value)  # type: ignore[arg-type]
    return copy


def unwrap_as(kind: type[T], wrapped: pb.StoreObject) -> T:
    value: T = getattr(wrapped, FIELD_OF[kind])
    return value
