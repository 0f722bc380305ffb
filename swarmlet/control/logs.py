"""Where the lines of `service logs` come from: the seam between control and the leader's log broker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument, NotFound
from swarmlet.control.references import find_service, find_task
from swarmlet.store.tables import Tables


class LogSource(Protocol):
    """Collects log lines from the nodes; only the leader has one."""

    def service_logs(
        self, *, service_id: str | None, task_ids: Sequence[str], options: pb.LogOptions
    ) -> AsyncIterator[pb.ServiceLogsResponse]:
        """Either the lines of a whole service, also of tasks that it gets later, or those of some tasks."""


async def read_logs(
    view: Tables, source: LogSource, request: pb.ServiceLogsRequest
) -> AsyncGenerator[pb.ServiceLogsResponse, None]:
    """The lines of what the request names. Raises NotFound or InvalidArgument."""
    if not request.options.stdout and not request.options.stderr:
        raise InvalidArgument("Bad parameters: you must choose at least one stream")
    service_id, task_ids = _selected(view, request.reference)
    stream = source.service_logs(service_id=service_id, task_ids=task_ids, options=request.options)
    async with AsyncExitStack() as stack:
        if isinstance(stream, AsyncGenerator):
            stack.push_async_callback(stream.aclose)
        async for response in stream:
            yield response


def _selected(view: Tables, reference: str) -> tuple[str | None, list[str]]:
    try:
        return find_service(view, reference).id, []
    except NotFound:
        pass  # It may still name a task.
    try:
        return None, [find_task(view, reference).id]
    except NotFound:
        raise NotFound(f"no such task or service: {reference}") from None
