"""One proxied TCP connection: a client, a backend, and the bytes between them.

Protocols on the transports themselves, not streams: a chunk is handed on in the
callback that brought it. Both directions are bounded: a side that reads slowly
stops the reading of the other. Half-closed connections stay half-closed. asyncio
sets TCP_NODELAY on every TCP transport.
"""

from __future__ import annotations

import asyncio
from typing import cast

import structlog

from swarmlet.network.backends import BackendPool
from swarmlet.network.endpoints import Backend
from swarmlet.network.httphead import REPLAY_BYTES_MAX, is_replayable

CONNECT_SECONDS = 1.0
"""For one attempt; a backend whose node is gone does not answer at all."""
WAIT_SECONDS = 5.0
"""How long a client is kept while no backend answers: the gap in a rolling update."""
RETRY_SECONDS = 0.1
REPLAYS_MAX = 2
BUFFER_BYTES_MAX = 64 * 1024

log = structlog.get_logger(__name__)


class ClientConnection(asyncio.Protocol):
    """What a listener makes for every client. Finds a backend and lives as long as the client."""

    def __init__(
        self, pool: BackendPool, *, wait_seconds: float = WAIT_SECONDS, replays: int = REPLAYS_MAX
    ) -> None:
        self._pool = pool
        self._wait_seconds = wait_seconds
        self._replays_left = replays
        self._client: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._backend: Backend | None = None
        self._upstream: _UpstreamConnection | None = None
        # Client bytes that no backend has been given yet.
        self._waiting = bytearray()
        # What a backend was given and has not answered; None once it cannot be said again.
        self._unanswered: bytearray | None = bytearray()
        self._client_eof = False

    # ---- the client's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client = cast(asyncio.Transport, transport)
        self._client.set_write_buffer_limits(high=BUFFER_BYTES_MAX)
        self._connect(set())

    def data_received(self, data: bytes) -> None:
        if self._upstream is not None:
            self._remember(data)
            self._upstream.write(data)
            return
        self._waiting += data
        if len(self._waiting) >= BUFFER_BYTES_MAX:
            self.pause_client()

    def eof_received(self) -> bool:
        self._client_eof = True
        if self._upstream is not None:
            self._upstream.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.pause()

    def resume_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self._client = None
        self._waiting.clear()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._drop_upstream(abort=exc is not None)

    # ---- the backend's side

    def upstream_data(self, data: bytes) -> None:
        self._unanswered = None
        if self._client is not None:
            self._client.write(data)

    def upstream_eof(self) -> bool:
        """Whether the connection to the backend stays open for the client's bytes."""
        if self._replay(None):
            return False
        if self._client is None or self._client_eof:
            return False
        self._client.write_eof()
        return True

    def upstream_lost(self, exc: Exception | None) -> None:
        if self._replay(exc):
            return
        self._drop_upstream()
        if self._client is not None:
            self._client.close()

    def backend_gone(self) -> None:
        """The backend's task has ended or its node is down: what it owes an answer may be asked elsewhere."""
        if self._upstream is not None:
            self._replay(ConnectionAbortedError())

    def pause_client(self) -> None:
        # Not after the end: resuming would read the end again.
        if self._client is not None and not self._client_eof:
            self._client.pause_reading()

    def resume_client(self) -> None:
        if self._client is not None and not self._client_eof:
            self._client.resume_reading()

    # ---- finding a backend

    def _connect(self, tried: set[Backend]) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._find_backend(tried))

    async def _find_backend(self, tried: set[Backend]) -> None:
        deadline = asyncio.get_running_loop().time() + self._wait_seconds
        upstream = None
        while upstream is None:
            backend = self._pool.acquire(self, tried)
            if backend is not None:
                self._backend = backend
                upstream = await self._try(backend)
                tried.add(backend)
            elif asyncio.get_running_loop().time() >= deadline:
                self._give_up()
                return
            else:
                tried.clear()
                await self._wait_for_backends(deadline)
        self._attach(upstream)

    async def _try(self, backend: Backend) -> _UpstreamConnection | None:
        """A connection to the backend that is held; None, and it is held no more, when that fails."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, upstream = await loop.create_connection(
                    lambda: _UpstreamConnection(self), backend.host, backend.port
                )
        except (OSError, TimeoutError):
            self._pool.penalise(backend)
            self._release()
            return None
        if self._pool.is_active(backend):
            return upstream
        # It left the table while the connection was made, and nothing was sent on it yet.
        upstream.drop(abort=True)
        self._release()
        return None

    async def _wait_for_backends(self, deadline: float) -> None:
        pause = min(deadline, asyncio.get_running_loop().time() + RETRY_SECONDS)
        try:
            async with asyncio.timeout_at(pause):
                await self._pool.changed()
        except TimeoutError:
            return

    def _attach(self, upstream: _UpstreamConnection) -> None:
        self._connecting = None
        if self._client is None:
            upstream.drop(abort=True)
            self._release()
            return
        self._upstream = upstream
        waiting = bytes(self._waiting)
        self._waiting.clear()
        if waiting:
            self._remember(waiting)
            upstream.write(waiting)
        if self._client_eof:
            upstream.write_eof()
        elif not upstream.is_full:
            self._client.resume_reading()
        upstream.resume()

    def _remember(self, data: bytes) -> None:
        if self._unanswered is None:
            return
        self._unanswered += data
        if len(self._unanswered) > REPLAY_BYTES_MAX:
            self._unanswered = None

    def _replay(self, exc: Exception | None) -> bool:
        """Begins again with another backend, where nobody can tell the difference; False where not."""
        if (
            self._client is None
            or self._backend is None
            or self._unanswered is None
            or not self._replays_left
        ):
            return False
        if self._unanswered:
            allowed = is_replayable(self._unanswered)
        else:
            # Nothing was said. A backend may close such a connection on purpose; one
            # that was reset, or has left, was cut off.
            allowed = exc is not None or not self._pool.is_active(self._backend)
        if not allowed:
            return False
        self._replays_left -= 1
        failed = self._backend
        self._pool.penalise(failed)
        self._waiting[:0] = self._unanswered
        self._unanswered = bytearray()
        self._drop_upstream(abort=True)
        log.debug("asking another backend", task=failed.task_id)
        self._connect({failed})
        return True

    def _give_up(self) -> None:
        self._connecting = None
        if self._client is not None:
            # A reset: the client must not take this for an empty answer.
            self._client.abort()

    def _drop_upstream(self, *, abort: bool = False) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.drop(abort=abort)
        self._release()

    def _release(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            self._pool.release(self, backend)


class _UpstreamConnection(asyncio.Protocol):
    """The other half; every decision is the client connection's."""

    def __init__(self, owner: ClientConnection) -> None:
        self._owner: ClientConnection | None = owner
        self._transport: asyncio.Transport | None = None
        self._eof = False
        self.is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES_MAX)
        # Until the owner has taken it.
        self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self._owner is not None:
            self._owner.upstream_data(data)

    def eof_received(self) -> bool:
        self._eof = True
        return self._owner.upstream_eof() if self._owner is not None else False

    def pause_writing(self) -> None:
        self.is_full = True
        if self._owner is not None:
            self._owner.pause_client()

    def resume_writing(self) -> None:
        self.is_full = False
        if self._owner is not None:
            self._owner.resume_client()

    def connection_lost(self, exc: Exception | None) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.upstream_lost(exc)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def write_eof(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._eof:
            self._transport.close()
        else:
            self._transport.write_eof()

    def pause(self) -> None:
        if self._transport is not None and not self._eof:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._eof:
            self._transport.resume_reading()

    def drop(self, *, abort: bool) -> None:
        """Ends the connection; the owner hears nothing of it any more."""
        self._owner = None
        if self._transport is None:
            return
        if abort:
            self._transport.abort()
        else:
            self._transport.close()
