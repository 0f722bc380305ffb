"""The connection to one Docker Engine: calls, one stream of events, streams of log lines.

Called by the docker runtime only. The SDK blocks, so its calls run in a bounded pool
of threads, and every stream in a thread of its own. Knows containers and errors of
the engine; knows nothing of tasks.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import json
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import docker
import docker.errors
import requests
import structlog
import urllib3
from docker.types import CancellableStream

from swarmlet.api import pb
from swarmlet.api.errors import Unavailable
from swarmlet.runtime.base import LogRecord

DEFAULT_URL: Final = "unix:///var/run/docker.sock"
CALL_THREADS: Final = 8
_CALL_SECONDS_MAX = 120
_PING_SECONDS_MAX = 5
_RECONNECT_SECONDS = 0.2
_RECONNECT_SECONDS_MAX = 5.0
_LOG_LINES_AHEAD_MAX = 4096
_FRAME_HEADER_BYTES = 8
_STREAMS = {1: pb.LOG_STREAM_STDOUT, 2: pb.LOG_STREAM_STDERR}

T = TypeVar("T")
Json = Mapping[str, Any]
_log = structlog.get_logger(__name__)


class EngineUnavailable(Unavailable):
    """The engine does not answer. What was asked may or may not have been done."""


def engine_url(url: str | None = None) -> str:
    """Docker's own rule where none is given: DOCKER_HOST, or else the default socket."""
    return url or os.environ.get("DOCKER_HOST") or DEFAULT_URL


async def engine_answers(url: str | None = None) -> str | None:
    """None when an engine answers there; else what is wrong, in a few words."""

    def ping() -> str | None:
        client = docker.APIClient(base_url=engine_url(url), version="1.24", timeout=_PING_SECONDS_MAX)
        try:
            client.ping()
        finally:
            client.close()
        return None

    try:
        return await asyncio.to_thread(ping)
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        return _reason(error)


class Engine:
    """One engine. `connected` (after each connect) and `event` are called on the event loop."""

    def __init__(
        self,
        url: str | None,
        *,
        labels: Mapping[str, str],
        event: Callable[[Json], None],
        connected: Callable[[], None],
    ) -> None:
        """`labels` select the containers whose events are wanted."""
        self.url = engine_url(url)
        self._labels = [f"{name}={value}" for name, value in labels.items()]
        self._event = event
        self._connected = connected
        self._threads = ThreadPoolExecutor(CALL_THREADS, thread_name_prefix="docker-call")
        self._client: docker.APIClient | None = None
        self._client_lock = threading.Lock()
        self._first_connect: asyncio.Event | None = None
        self._events_thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._streams: set[CancellableStream[Any]] = set()

    async def call(self, function: Callable[[docker.APIClient], T]) -> T:
        """Runs `function` with the SDK's client in a thread.

        Raises EngineUnavailable when the engine does not answer, and the SDK's APIError.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, function)

    async def watch(self) -> None:
        """Begins the stream of events, which reconnects by itself. Returns once it is connected."""
        if self._first_connect is None:
            self._first_connect = asyncio.Event()
            loop = asyncio.get_running_loop()
            self._events_thread = threading.Thread(
                target=self._read_events, args=(loop, self._first_connect), name="docker-events", daemon=True
            )
            self._events_thread.start()
        while not self._first_connect.is_set():
            await self.call(lambda client: client.ping())  # or say why there is no stream yet
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._first_connect.wait(), 1.0)

    async def containers(self) -> list[Json]:
        """Every container with our labels, running or not, in the engine's short form."""
        return await self.call(lambda c: list(c.containers(all=True, filters={"label": self._labels})))

    async def inspect(self, container: str) -> Json | None:
        """None when there is no such container. Takes a name or an id."""
        try:
            return await self.call(lambda client: client.inspect_container(container))
        except docker.errors.NotFound:
            return None

    async def pull(self, image: str, auth: bytes) -> None:
        """Raises APIError, EngineUnavailable, or ValueError with the registry's words."""

        def pull(client: docker.APIClient) -> None:
            lines = client.pull(image, stream=True, decode=True, auth_config=_auth_config(auth))
            for line in lines:
                if "error" in line:
                    raise ValueError(line["error"])

        await self.call(pull)

    async def logs(
        self, container: str, options: pb.LogOptions, *, tty: bool
    ) -> AsyncGenerator[LogRecord, None]:
        """Lines with the engine's times, from a thread that is ended with the iteration."""
        feed = _Feed(asyncio.get_running_loop())
        thread = threading.Thread(
            target=self._read_logs, args=(container, options, tty, feed), name="docker-logs", daemon=True
        )
        thread.start()
        try:
            async for record in feed.records():
                yield record
        finally:
            feed.abandon()

    async def close(self) -> None:
        """Ends the streams and threads."""
        self._closed.set()
        for stream in list(self._streams):
            _close_stream(stream)
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._events_thread is not None:
            await asyncio.to_thread(self._events_thread.join, _PING_SECONDS_MAX)
        if self._client is not None:
            self._client.close()

    def _call(self, function: Callable[[docker.APIClient], T]) -> T:
        try:
            return function(self._connect())
        except docker.errors.APIError:
            raise
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            raise EngineUnavailable(
                f"Cannot connect to the Docker daemon at {self.url}. Is the docker daemon running? "
                f"({_reason(error)})"
            ) from error

    def _connect(self) -> docker.APIClient:
        with self._client_lock:
            if self._client is None:
                self._client = docker.APIClient(
                    base_url=self.url,
                    version="auto",
                    timeout=_CALL_SECONDS_MAX,
                    max_pool_size=2 * CALL_THREADS,
                )
            return self._client

    def _read_events(self, loop: asyncio.AbstractEventLoop, first_connect: asyncio.Event) -> None:
        pause_seconds = _RECONNECT_SECONDS
        filters = {"type": "container", "event": ["die", "destroy", "health_status"], "label": self._labels}

        def open_stream(client: docker.APIClient) -> CancellableStream[Any]:
            return client.events(filters=filters, decode=True)

        while not self._closed.is_set():
            try:
                stream = self._call(open_stream)
                with self._open(stream):
                    pause_seconds = _RECONNECT_SECONDS
                    loop.call_soon_threadsafe(first_connect.set)
                    loop.call_soon_threadsafe(self._connected)
                    for event in stream:
                        loop.call_soon_threadsafe(self._event, event)
            except RuntimeError:
                return  # the loop is closed: nobody listens any more
            except (
                Unavailable,
                docker.errors.DockerException,
                requests.RequestException,
                ValueError,
            ) as error:
                _log.warning("no events from the engine", url=self.url, error=str(error))
            self._closed.wait(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _RECONNECT_SECONDS_MAX)

    def _read_logs(self, container: str, options: pb.LogOptions, tty: bool, feed: _Feed) -> None:
        both = options.stdout == options.stderr
        parameters: dict[str, str | int] = {
            "stdout": int(options.stdout or both),
            "stderr": int(options.stderr or both),
            "follow": int(options.follow),
            "timestamps": 1,
            "tail": "all" if options.tail < 0 else options.tail,
        }
        if options.HasField("since"):
            parameters["since"] = f"{options.since.seconds}.{options.since.nanos:09}"

        def open_stream(client: docker.APIClient) -> requests.Response:
            url = f"{client.base_url}/v{client.api_version}/containers/{container}/logs"
            # The SDK's own method drops which stream a line came from.
            response = client.get(url, params=parameters, stream=True, timeout=(_PING_SECONDS_MAX, None))
            response.raise_for_status()
            return response

        try:
            response = self._call(open_stream)
            stream: CancellableStream[Any] = CancellableStream(iter(()), response)
            with self._open(stream):
                feed.abandoned = lambda: _close_stream(stream)
                if feed.is_abandoned:
                    return
                for record in _tty_records(response) if tty else _framed_records(response):
                    if not feed.put(record):
                        return
        except (Unavailable, docker.errors.DockerException, requests.RequestException) as error:
            if not feed.is_abandoned and not _is_gone(error):
                _log.warning("cannot read a container's log", container=container, error=str(error))
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # What reading from a response raises when it is closed under the reader.
            _log.debug("log stream was closed", container=container, error=str(error))
        finally:
            feed.end()

    @contextlib.contextmanager
    def _open(self, stream: CancellableStream[Any]) -> Iterator[None]:
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)
            _close_stream(stream)


class _Feed:
    """Records from one thread to one coroutine, at most `_LOG_LINES_AHEAD_MAX` on the way."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._records: collections.deque[LogRecord | None] = collections.deque()
        self._room = threading.Semaphore(_LOG_LINES_AHEAD_MAX)
        self._filled = asyncio.Event()
        self.is_abandoned = False
        self.abandoned: Callable[[], None] = lambda: None

    def put(self, record: LogRecord) -> bool:
        """False when nobody reads any more."""
        self._room.acquire()
        if self.is_abandoned:
            return False
        self._records.append(record)
        return self._wake()

    def end(self) -> None:
        self._records.append(None)
        self._wake()

    async def records(self) -> AsyncIterator[LogRecord]:
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._records:
                record = self._records.popleft()
                if record is None:
                    return
                self._room.release()
                yield record

    def abandon(self) -> None:
        self.is_abandoned = True
        self._room.release()
        self.abandoned()

    def _wake(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._filled.set)
        except RuntimeError:
            return False  # the loop is closed
        return True


def _framed_records(response: requests.Response) -> Iterator[LogRecord]:
    """The engine's frames: a byte for the stream, three of padding, four for the length, one log message."""
    while len(header := response.raw.read(_FRAME_HEADER_BYTES)) == _FRAME_HEADER_BYTES:
        payload = response.raw.read(int.from_bytes(header[4:], "big"))
        stream = _STREAMS.get(header[0])
        if stream is None:
            # The engine reports its own trouble in a third stream.
            _log.warning("engine cannot read a log", error=payload.decode(errors="replace"))
        elif record := _record(stream, payload):
            yield record


def _tty_records(response: requests.Response) -> Iterator[LogRecord]:
    for line in response.iter_lines(chunk_size=None, delimiter=b"\n"):
        if record := _record(pb.LOG_STREAM_STDOUT, line):
            yield record


def _record(stream: pb.LogStream.ValueType, message: bytes) -> LogRecord | None:
    time, _, data = message.partition(b" ")
    try:
        # Nanoseconds are more than a datetime holds.
        seconds, _, fraction = time.decode("ascii").rstrip("Z").partition(".")
        timestamp = datetime.fromisoformat(f"{seconds}.{fraction[:6].ljust(6, '0')}").replace(tzinfo=UTC)
    except ValueError:
        return None
    return LogRecord(timestamp, stream, data.removesuffix(b"\n").removesuffix(b"\r"))


def _close_stream(stream: CancellableStream[Any]) -> None:
    try:
        stream.close()
    except (OSError, AttributeError, ValueError) as error:
        _log.debug("stream was already closed", error=str(error))


def _auth_config(auth: bytes) -> dict[str, Any] | None:
    """What X-Registry-Auth carries: JSON, or base64 of it as in the header itself."""
    if not auth:
        return None
    try:
        text = auth if auth.lstrip().startswith(b"{") else base64.urlsafe_b64decode(auth + b"==")
        config = json.loads(text)
    except ValueError:
        _log.warning("registry credentials of a service are malformed and not used")
        return None
    return config if isinstance(config, dict) else None


def _is_gone(error: Exception) -> bool:
    response = getattr(error, "response", None)
    return response is not None and response.status_code == 404


def _reason(error: BaseException) -> str:
    """The innermost cause: what the operating system said."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
