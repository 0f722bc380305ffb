"""A constant stream of HTTP requests that counts what fails, and why.

Open loop: request n is due at n / rate seconds, whether or not earlier ones were
answered, so a server that stalls shows as latency and not as fewer requests. Used by
the demo, the tests and the measurements; knows nothing of the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

IN_FLIGHT_MAX = 2000
ANSWER_BYTES_MAX = 1 << 20
_SAMPLES_KEPT = 10


@dataclass
class Outcome:
    """What came of the requests so far."""

    ok: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """How many requests failed for each reason."""
    latencies_seconds: list[float] = field(default_factory=list)
    """Of the successful requests, from when each was due."""
    bodies: Counter[str] = field(default_factory=Counter)
    """First line of each answer: tells versions and replicas apart."""
    examples: list[str] = field(default_factory=list)
    """The first failures, with their time since the start and target."""

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def total(self) -> int:
        return self.ok + self.failed

    def latency(self, quantile: float) -> float:
        """Seconds below which `quantile` (0 to 1) of the successful requests took; 0 without any."""
        ordered = sorted(self.latencies_seconds)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else 0.0

    def reasons(self) -> str:
        return ", ".join(f"{count} x {reason}" for reason, count in self.failures.most_common()) or "none"


class RequestFailed(Exception):
    """Why a request got no whole answer with status 200."""


class Load:
    """Requests at `rate` per second to `targets` in turn, from `start` until `stop`.

    Each request uses a connection of its own, or with `keep_alive` one of those kept
    per target; a kept connection that the server closed before it saw the request is
    replaced once, as every HTTP client does. A request that is not answered within
    `timeout` seconds of its due time has failed.
    """

    def __init__(
        self, targets: Sequence[str], *, rate: float, keep_alive: bool = False, timeout: float = 5.0
    ) -> None:
        if not targets or rate <= 0:
            raise ValueError("a load needs targets and a positive rate")
        self.outcome = Outcome()
        self._targets = [_Target(url, keep_alive) for url in targets]
        self._used = list(self._targets)
        self._rate = rate
        self._timeout = timeout
        self._in_flight: set[asyncio.Task[None]] = set()
        self._pacer: asyncio.Task[None] | None = None
        self._began = 0.0

    async def __aenter__(self) -> Load:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def once(self) -> Outcome:
        """One request to each target, at once."""
        self._began = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._request(target, self._began) for target in self._targets))
        return self.outcome

    def start(self) -> None:
        self._began = asyncio.get_running_loop().time()
        self._pacer = asyncio.create_task(self._pace())

    def leave(self, url: str) -> None:
        """Sends nothing more to a target, whose requests on their way do not count as failed.

        For a target that is about to be killed: what its clients lose is not the cluster's doing.
        """
        for target in self._targets:
            if target.url == url:
                target.counts = False
        self._used = [target for target in self._targets if target.counts]

    def enter(self, url: str) -> None:
        """Takes up a target again that was left."""
        for target in self._targets:
            if target.url == url:
                target.counts = True
        self._used = [target for target in self._targets if target.counts]

    async def stop(self) -> Outcome:
        """Sends nothing more, waits for the answers to what was sent, and returns what came of it all."""
        if self._pacer is not None:
            self._pacer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pacer
            self._pacer = None
        while self._in_flight:
            await asyncio.wait(self._in_flight)
        for target in self._targets:
            target.close()
        return self.outcome

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        while True:
            due = self._began + number / self._rate
            # Also when late: a burst must not keep answers from being read.
            await asyncio.sleep(max(0.0, due - loop.time()))
            number += 1
            if not self._used:
                continue
            target = self._used[number % len(self._used)]
            if len(self._in_flight) >= IN_FLIGHT_MAX:
                self._fail(target, "too many requests in flight")
                continue
            request = asyncio.create_task(self._request(target, due))
            self._in_flight.add(request)
            request.add_done_callback(self._in_flight.discard)

    async def _request(self, target: _Target, due: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(due + self._timeout):
                body = await target.get()
        except TimeoutError:
            self._fail(target, "timed out")
        except RequestFailed as failure:
            self._fail(target, str(failure))
        else:
            self.outcome.ok += 1
            self.outcome.latencies_seconds.append(loop.time() - due)
            self.outcome.bodies[body.partition(b"\n")[0].decode(errors="replace")] += 1

    def _fail(self, target: _Target, reason: str) -> None:
        if not target.counts:
            return
        self.outcome.failures[reason] += 1
        if len(self.outcome.examples) < _SAMPLES_KEPT:
            since = asyncio.get_running_loop().time() - self._began
            self.outcome.examples.append(f"{since:.2f} s {target.name}: {reason}")


async def fetch(url: str, *, timeout: float = 5.0) -> Outcome:
    """One request."""
    return await Load([url], rate=1.0, timeout=timeout).once()


class _Target:
    """One URL and, with keep-alive, its idle connections."""

    def __init__(self, url: str, keep_alive: bool) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"not an http URL: {url}")
        self.url = url
        self.name = parts.netloc
        self.counts = True
        self._address = (parts.hostname, parts.port or 80)
        self._keep_alive = keep_alive
        self._idle: list[_Connection] = []
        connection = "keep-alive" if keep_alive else "close"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = (f"GET {path} HTTP/1.1", f"Host: {self.name}", f"Connection: {connection}", "", "")
        self._request = "\r\n".join(head).encode()

    async def get(self) -> bytes:
        """The body of one answer; raises RequestFailed."""
        if self._idle:
            # Closed while idle, it never saw the request: a fresh one may carry it.
            with contextlib.suppress(_NothingRead):
                return await self._exchange(self._idle.pop())
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(_Connection, *self._address)
        except OSError as error:
            raise RequestFailed(f"connect: {error.strerror or error}") from error
        try:
            return await self._exchange(connection)
        except _NothingRead as failure:
            raise RequestFailed(str(failure)) from failure

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _exchange(self, connection: _Connection) -> bytes:
        kept = False
        try:
            answer = await connection.exchange(self._request)
            kept = self._keep_alive and answer.is_reusable
        finally:
            if kept:
                self._idle.append(connection)
            else:
                connection.close()
        if answer.status != b"200":
            raise RequestFailed(f"status {answer.status.decode(errors='replace')}")
        return answer.body


class _NothingRead(Exception):
    """The connection ended before the first byte of an answer."""


@dataclass(frozen=True)
class _Answer:
    status: bytes
    body: bytes
    is_reusable: bool


class _Connection(asyncio.Protocol):
    """One request at a time. No streams: they cost the machine under test twice as much."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._lost = False
        self._answer: asyncio.Future[_Answer] | None = None

    async def exchange(self, request: bytes) -> _Answer:
        """Raises _NothingRead or RequestFailed when the connection ends before the answer does."""
        assert self._transport is not None
        if self._lost:
            raise _NothingRead("closed without an answer")
        self._received = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > ANSWER_BYTES_MAX:
            self._end(error=RequestFailed(f"an answer of more than {ANSWER_BYTES_MAX} bytes"))
        elif (answer := _parse(self._received, is_all=False)) is not None:
            self._end(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if not self._received:
            reason = f"read: {getattr(exc, 'strerror', None) or exc}" if exc else "closed without an answer"
            self._end(error=_NothingRead(reason))
        elif exc is not None:
            self._end(error=RequestFailed(f"read: {getattr(exc, 'strerror', None) or exc}"))
        elif (answer := _parse(self._received, is_all=True)) is not None:
            self._end(answer)
        else:
            where = "body" if b"\r\n\r\n" in self._received else "headers"
            self._end(error=RequestFailed(f"closed inside the {where}"))

    def _end(self, answer: _Answer | None = None, error: Exception | None = None) -> None:
        if self._answer is None or self._answer.done():
            return
        if error is not None:
            self._answer.set_exception(error)
        elif answer is not None:
            self._answer.set_result(answer)


def _parse(received: bytes, *, is_all: bool) -> _Answer | None:
    """The answer, if `received` holds one whole; one without a length ends with its connection."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    status, *headers = head.split(b"\r\n")
    length, reusable = -1, status.startswith(b"HTTP/1.1")
    for line in headers:
        name, _, value = line.partition(b":")
        match name.lower():
            case b"content-length":
                length = int(value)
            case b"connection":
                reusable = value.strip().lower() == b"keep-alive"
    code = b"".join(status.split(b" ", 2)[1:2])
    if length >= 0:
        return _Answer(code, body[:length], reusable) if len(body) >= length else None
    return _Answer(code, body, False) if is_all else None
