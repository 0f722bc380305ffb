"""Small real servers and clients on loopback, for tests of the proxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from swarmlet.api import pb

HOST = "127.0.0.1"
PATIENCE_SECONDS = 15.0

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One task's port."""

    def __init__(self, name: str, handler: Handler | None = None, delay_seconds: float = 0.0) -> None:
        self.name = name
        self.port = 0
        self.accepted = 0
        self.open = 0
        self._delay_seconds = delay_seconds
        self._handler = handler or self._answer
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> Server:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Takes no more connections; those held go on."""
        if self._server is not None:
            self._server.close()

    async def kill(self) -> None:
        """Cuts every connection, as a process that dies does."""
        await self.stop()
        for writer in list(self._writers):
            writer.transport.abort()

    def endpoint(self, state: pb.EndpointState.ValueType = pb.ENDPOINT_STATE_ACTIVE) -> pb.TaskEndpoint:
        return pb.TaskEndpoint(
            task_id=self.name,
            state=state,
            addresses=[pb.EndpointAddress(target_port=80, address=HOST, port=self.port)],
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        self._writers.add(writer)
        try:
            await self._handler(reader, writer)
        except ConnectionError:
            return
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(self._delay_seconds)
        body = self.name.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()


def a_table(port: int, *endpoints: pb.TaskEndpoint, service_id: str = "web") -> list[pb.ServiceEndpoints]:
    return [
        pb.ServiceEndpoints(
            service_id=service_id,
            service_name=service_id,
            ports=[pb.PortConfig(target_port=80, published_port=port)],
            endpoints=endpoints,
        )
    ]


async def get(port: int, method: str = "GET", host: str = HOST) -> bytes:
    """One request; the body, or b"" when the connection was cut."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            response = await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()
    return response.partition(b"\r\n\r\n")[2]


@asynccontextmanager
async def connected(port: int) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter], None]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
