"""The stream of changes that users see: first everything, then every change, without a gap."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument
from swarmlet.control.presentation import Presenter
from swarmlet.store.store import Store, kind_of
from swarmlet.store.tables import StoredObject, Tables
from swarmlet.store.watch import WatchOverflow

RESPONSE_BYTES_MAX = 1_000_000
"""About where a response is closed and the next one begun; far below gRPC's limit for a message."""


async def watch_changes(
    store: Store, presenter: Presenter, request: pb.WatchRequest
) -> AsyncGenerator[pb.WatchResponse, None]:
    """Responses in commit order, until the reader stops.

    The one with `snapshot` set means: forget everything, this is what is there. A
    large snapshot goes on in the next responses as creations, before any later change.
    After a slow reader lost changes a new snapshot begins. Raises InvalidArgument for
    an unknown kind.
    """
    _check_kinds(store.view, request)
    with store.watching(lambda change: _is_wanted(change.current, request)) as watcher:
        # No await between the subscription and this look, nor after a loss before the next.
        events, is_snapshot = _everything(store.view, request), True
        while True:
            for response in _responses(events, presenter, is_snapshot=is_snapshot):
                yield response
            try:
                changes = await watcher.next()
                events, is_snapshot = [(c.kind, c.current) for c in changes], False
            except WatchOverflow:
                events, is_snapshot = _everything(store.view, request), True


def _check_kinds(view: Tables, request: pb.WatchRequest) -> None:
    known = [table.kind for table in view.all_tables()]
    for kind in request.kinds:
        if kind not in known:
            raise InvalidArgument(f"unknown kind '{kind}' to watch: use {', '.join(known)}")


def _is_wanted(value: StoredObject, request: pb.WatchRequest) -> bool:
    if request.kinds and kind_of(value) not in request.kinds:
        return False
    if not request.service_id:
        return True
    match value:
        case pb.Service():
            return value.id == request.service_id
        case pb.Task():
            return value.service_id == request.service_id
        case _:
            return False


_Event = tuple[pb.ChangeKind.ValueType, StoredObject]


def _everything(view: Tables, request: pb.WatchRequest) -> list[_Event]:
    return [
        (pb.CHANGE_KIND_CREATE, value)
        for value in _candidates(view, request.service_id)
        if _is_wanted(value, request)
    ]


def _candidates(view: Tables, service_id: str) -> list[StoredObject]:
    if not service_id:
        return [value for table in view.all_tables() for value in table]
    service = view.services.get(service_id)
    tasks = view.tasks.find("service", service_id)
    return [*([service] if service is not None else []), *tasks]


def _responses(
    events: list[_Event], presenter: Presenter, *, is_snapshot: bool
) -> Iterator[pb.WatchResponse]:
    """The events in as many responses as their size asks for; an empty snapshot is one response too."""
    response = pb.WatchResponse(snapshot=is_snapshot)
    size_bytes = 0
    for kind, value in events:
        event = response.events.add(kind=kind)
        shown = getattr(event.object, kind_of(value))
        shown.CopyFrom(value)
        presenter.prepare(shown)
        size_bytes += event.ByteSize()
        if size_bytes > RESPONSE_BYTES_MAX:
            yield response
            response = pb.WatchResponse()
            size_bytes = 0
    if response.events or response.snapshot:
        yield response
