"""The network of a simulated cluster: connections that delay, hang and break, and calls over them.

Hosts are names. A connection is TCP-like: in order, nothing lost but by breaking, and a
break is noticed late or, while a host is cut off, only by keep-alive. Everything that
arrives is handled in the receiving process.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from swarmlet.api.errors import SwarmletError, Unavailable, UnknownOutcome
from swarmlet.control.grpc import ConnectionLost
from tests.sim.processes import Process

KEEPALIVE_SECONDS = 8.0
"""How long a connection between hosts that do not reach each other lasts."""
RETRANSMIT_SECONDS = 0.2
CONNECT_SECONDS_MAX = 2.0
BREAK_SECONDS_MAX = 0.5


class Network:
    def __init__(self, rng: random.Random, *, delay_seconds: float) -> None:
        self.rng = rng
        self.delay_seconds = delay_seconds
        self.loop = asyncio.get_running_loop()
        self.processes: dict[str, Process] = {}
        """The process that listens on each host."""
        self._cut: set[tuple[str, str]] = set()
        self._connections: dict[Connection, None] = {}

    # ---- faults

    def cut(self, source: str, target: str) -> None:
        """Nothing goes from one host to the other any more."""
        if source == target:
            return
        self._cut.add((source, target))
        for connection in self.between(source, target):
            self.loop.call_later(KEEPALIVE_SECONDS, self._keep_alive, connection)

    def heal(self, source: str, target: str) -> None:
        self._cut.discard((source, target))

    def heal_all(self) -> None:
        self._cut.clear()

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cut

    @property
    def is_whole(self) -> bool:
        return not self._cut

    def break_connections(self, a: str, b: str) -> None:
        for connection in self.between(a, b):
            connection.break_down()

    def process_died(self, process: Process, *, is_silent: bool) -> None:
        """A dead process's connections are reset by its host; one without power says nothing."""
        if self.processes.get(process.host) is process:
            del self.processes[process.host]
        for connection in [c for c in self._connections if process in c.processes]:
            connection.lose_end(process, KEEPALIVE_SECONDS if is_silent else 0.0)

    def between(self, a: str, b: str) -> list[Connection]:
        return [c for c in self._connections if {p.host for p in c.processes} == {a, b}]

    def _keep_alive(self, connection: Connection) -> None:
        a, b = (p.host for p in connection.processes)
        if self.is_cut(a, b) or self.is_cut(b, a):
            connection.break_down()

    # ---- use

    def can_connect(self, source: str, target: str) -> bool:
        return (
            target in self.processes and not self.is_cut(source, target) and not self.is_cut(target, source)
        )

    def connect(self, a: End, b: End) -> Connection:
        connection = Connection(self, a, b)
        self._connections[connection] = None
        return connection

    def forget(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    def delay(self, source: str, target: str) -> float:
        return 0.0 if source == target else self.rng.uniform(0, self.delay_seconds)


@dataclass(eq=False)
class End:
    """One side of a connection; both are called in its process."""

    process: Process
    receive: Callable[[Any], None]
    broken: Callable[[], None]


@dataclass
class _Direction:
    queue: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque)
    is_pumping: bool = False
    last_due: float = 0.0


class Connection:
    """Made by `Network.connect`. `send` and `close` name the side that does it, 0 or 1."""

    def __init__(self, network: Network, a: End, b: End) -> None:
        self._network = network
        self._ends = (a, b)
        self._directions = (_Direction(), _Direction())
        self._told = [False, False]
        self.is_open = True

    @property
    def processes(self) -> tuple[Process, Process]:
        return (self._ends[0].process, self._ends[1].process)

    def send(self, side: int, message: Any) -> None:
        """Lost without a word on a connection that is broken."""
        other = self._ends[1 - side]
        if self._ends[side].process.alive:
            self._put(side, lambda: other.process.post(self._deliver, 1 - side, message))

    def _deliver(self, side: int, message: Any) -> None:
        if not self._told[side]:
            self._ends[side].receive(message)

    def close(self, side: int) -> None:
        """This side hears nothing more; the other is told after everything that was sent."""
        self._told[side] = True
        if self._ends[side].process.alive:
            self._put(side, lambda: self._tell(1 - side))

    def break_down(self) -> None:
        """What is in flight is lost; both sides find out, each in its time."""
        if not self.is_open:
            return
        self.is_open = False
        self._network.forget(self)
        for side in (0, 1):
            self._directions[side].queue.clear()
            delay = self._network.rng.uniform(0, BREAK_SECONDS_MAX)
            self._network.loop.call_later(delay, self._tell, side)

    def lose_end(self, process: Process, seconds: float) -> None:
        """One side died: a part of what it sent last may still arrive."""
        for side in (0, 1):
            if self._ends[side].process is not process:
                continue
            queue = self._directions[side].queue
            for _ in range(self._network.rng.randint(0, len(queue))):
                queue.pop()
            if seconds:
                self._network.loop.call_later(seconds, self.break_down)
            else:
                self._put(side, lambda side=side: self._tell(1 - side))  # type: ignore[misc]

    def _tell(self, side: int) -> None:
        self.is_open = False
        self._network.forget(self)
        if not self._told[side]:
            self._told[side] = True
            self._ends[side].process.post(self._ends[side].broken)

    def _put(self, side: int, arrive: Callable[[], None]) -> None:
        if not self.is_open:
            return
        direction = self._directions[side]
        source, target = self._ends[side].process.host, self._ends[1 - side].process.host
        due = max(direction.last_due, self._network.loop.time() + self._network.delay(source, target))
        direction.last_due = due
        direction.queue.append((due, arrive))
        if not direction.is_pumping:
            direction.is_pumping = True
            self._network.loop.call_at(due, self._pump, side)

    def _pump(self, side: int) -> None:
        direction = self._directions[side]
        direction.is_pumping = False
        source, target = self._ends[side].process.host, self._ends[1 - side].process.host
        now = self._network.loop.time()
        while direction.queue:
            due, arrive = direction.queue[0]
            if self._network.is_cut(source, target):
                due = now + RETRANSMIT_SECONDS
            if due > now:
                direction.is_pumping = True
                self._network.loop.call_at(due, self._pump, side)
                return
            direction.queue.popleft()
            arrive()


# ---- calls and streams


class Stream:
    """The caller's side of a streaming call: what comes, in order, until the end."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._wake = asyncio.Event()
        self._ended = False
        self._error: SwarmletError | None = None

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._wake.set()

    def end(self, error: SwarmletError | None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
            self._wake.set()

    def raise_if_ended(self) -> None:
        if self._ended:
            raise self._error or Unavailable("the session has ended")

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            while self._items:
                yield self._items.popleft()
            if self._ended:
                if self._error is not None:
                    raise self._error
                return
            await self._wake.wait()
            self._wake.clear()


@dataclass(frozen=True)
class Ended:
    """The last item of a stream, and an answer that is an error."""

    error: SwarmletError | None


Handler = Callable[[Any], Awaitable[Any]]


async def call(
    network: Network,
    client: Process,
    target: str,
    handler: Callable[[], Handler],
    request: Any,
    *,
    timeout: float | None,
) -> Any:
    """One call, answered in the process on `target` by what `handler` returns there.

    Raises what the handler raises; Unavailable("failed to connect"), ConnectionLost and
    UnknownOutcome as gRPC's errors are read by `swarmlet.control.grpc`.
    """
    await _wait_for_connect(network, client, target)
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    server = network.processes[target]
    working: list[asyncio.Task[None]] = []

    async def work(request: Any) -> None:
        try:
            response = copied(await handler()(request))
        except SwarmletError as error:
            response = Ended(error)
        connection.send(1, response)

    def received(response: Any) -> None:
        if not answer.done():
            answer.set_result(response)

    def lost() -> None:
        if not answer.done():
            answer.set_exception(ConnectionLost("the connection broke"))

    def cancelled() -> None:
        for task in working:
            task.cancel()

    def begin(request: Any) -> None:
        working.append(asyncio.get_running_loop().create_task(work(request)))

    connection = network.connect(End(client, received, lost), End(server, begin, cancelled))
    connection.send(0, copied(request))
    try:
        async with asyncio.timeout(timeout):
            response = await answer
    except TimeoutError:
        raise UnknownOutcome("no answer in time; whether it was done is not known") from None
    finally:
        connection.close(0)
    if isinstance(response, Ended):
        assert response.error is not None
        raise response.error
    return response


async def open_stream(
    network: Network,
    client: Process,
    target: str,
    serve: Callable[[AsyncIterator[Any], Callable[[Any], None]], Awaitable[None]],
) -> tuple[Stream, Connection]:
    """A stream both ways, served in the process on `target` by `serve(incoming, send)`.

    `serve` is cancelled when the caller goes; what it raises ends the stream. Raises
    Unavailable when the host does not answer.
    """
    await _wait_for_connect(network, client, target)
    stream, incoming = Stream(), Stream()
    server = network.processes[target]
    serving: list[asyncio.Task[None]] = []

    async def work() -> None:
        try:
            await serve(aiter(incoming), lambda item: connection.send(1, copied(item)))
        except SwarmletError as error:
            connection.send(1, Ended(error))
        else:
            connection.send(1, Ended(None))

    def received(item: Any) -> None:
        if isinstance(item, Ended):
            stream.end(item.error)
        else:
            stream.put(item)

    def lost() -> None:
        stream.end(Unavailable("the connection broke"))

    def gone() -> None:
        incoming.end(Unavailable("the caller has gone"))
        for task in serving:
            task.cancel()

    def begin() -> None:
        if not serving:
            serving.append(asyncio.get_running_loop().create_task(work()))

    def arrived(item: Any) -> None:
        begin()
        if item is not None:
            incoming.put(item)

    connection = network.connect(End(client, received, lost), End(server, arrived, gone))
    connection.send(0, None)
    return stream, connection


async def _wait_for_connect(network: Network, client: Process, target: str) -> None:
    """Raises Unavailable when the host does not answer."""
    if network.can_connect(client.host, target):
        return
    is_refused = not network.is_cut(client.host, target) and not network.is_cut(target, client.host)
    await asyncio.sleep(network.delay_seconds if is_refused else CONNECT_SECONDS_MAX)
    if not network.can_connect(client.host, target):
        raise Unavailable("failed to connect to all addresses")


def copied(message: Any) -> Any:
    """What the wire makes of a message: nobody shares objects with another process."""
    if message is None or isinstance(message, Ended):
        return message
    return type(message).FromString(message.SerializeToString())
