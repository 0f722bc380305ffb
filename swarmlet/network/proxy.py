"""Published ports in this process: the embedded stand-in of the kernel's mesh.

`PortProxy` listens on every published ingress port of the cluster and hands
connections to tasks wherever they run. Driven by the agent with the endpoint table;
`apply` returning is what the agent confirms to the dispatcher, so it means that
nothing new goes to what left the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog

from swarmlet.api import pb
from swarmlet.network.backends import BackendPool
from swarmlet.network.endpoints import PublishedPort, routes_of
from swarmlet.network.splice import ClientConnection
from swarmlet.network.udp import UdpForwarder

BIND_RETRY_SECONDS = 1.0
BACKLOG = 1024

log = structlog.get_logger(__name__)


class _Closable(Protocol):
    def close(self) -> None: ...


class PortProxy:
    """All published ports of one node."""

    def __init__(self, listen_address: str) -> None:
        """Listens on `listen_address`, e.g. "0.0.0.0", or the node's own address in a lab."""
        self._listen_address = listen_address
        self._ports: dict[PublishedPort, _Port] = {}
        # Ports that are gone may still hold connections.
        self._closed_ports: list[_Port] = []
        self._released = asyncio.Event()

    async def apply(self, services: Sequence[pb.ServiceEndpoints]) -> None:
        """Makes listeners and backends match the table.

        Returns when no new connection goes to a backend that is draining or absent and
        those that one held have ended, or DRAIN_SECONDS have passed since it left. May
        be called again while an earlier call waits; the newest table counts.
        """
        routes = routes_of(services)
        for published in [p for p in self._ports if p not in routes]:
            port = self._ports.pop(published)
            port.close()
            self._closed_ports.append(port)
        opened = []
        for published, route in routes.items():
            known = self._ports.get(published)
            if known is None:
                known = _Port(self._listen_address, published, self._connection_released)
                self._ports[published] = known
                opened.append(known)
            known.pool.update(route)
        for port in opened:
            await port.open()
        await self._drained()

    def errors(self) -> Mapping[PublishedPort, str]:
        """Ports that cannot be served at the moment, and why."""
        return {published: port.error for published, port in self._ports.items() if port.error}

    async def close(self) -> None:
        """Stops listening; connections that are held end with the process."""
        for port in self._ports.values():
            port.close()
        self._ports.clear()

    def _connection_released(self) -> None:
        released, self._released = self._released, asyncio.Event()
        released.set()

    async def _drained(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._closed_ports = [p for p in self._closed_ports if p.pool.drain_deadlines()]
            pools = [p.pool for p in (*self._ports.values(), *self._closed_ports)]
            waiting = [at for pool in pools for at in pool.drain_deadlines() if at > loop.time()]
            if not waiting:
                return
            try:
                async with asyncio.timeout_at(min(waiting)):
                    await self._released.wait()
            except TimeoutError:
                continue


class _Port:
    """One published port: its listener and its backends."""

    def __init__(self, listen_address: str, published: PublishedPort, released: Callable[[], None]) -> None:
        self.pool = BackendPool(released)
        self.error = ""
        self._listen_address = listen_address
        self._published = published
        self._listener: _Closable | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Begins to listen; what prevents it is logged, kept in `error`, and tried again."""
        await self._listen()
        if self._listener is None and not self._closed:
            self._retrying = asyncio.create_task(self._retry())

    def close(self) -> None:
        self._closed = True
        self.pool.retire()
        if self._retrying is not None:
            self._retrying.cancel()
        if self._listener is not None:
            self._listener.close()

    async def _retry(self) -> None:
        while self._listener is None:
            await asyncio.sleep(BIND_RETRY_SECONDS)
            await self._listen()

    async def _listen(self) -> None:
        try:
            listener = await self._bind()
        except OSError as error:
            self._failed(
                f"published port {self._published} cannot be bound on {self._listen_address}: {error}"
            )
            return
        if self._closed:
            listener.close()
            return
        if self.error:
            log.info("published port is served now", port=str(self._published))
        self.error = ""
        self._listener = listener

    async def _bind(self) -> _Closable:
        loop = asyncio.get_running_loop()
        match self._published.protocol:
            case pb.PORT_PROTOCOL_TCP:
                return await loop.create_server(
                    lambda: ClientConnection(self.pool),
                    self._listen_address,
                    self._published.number,
                    backlog=BACKLOG,
                    reuse_address=True,
                )
            case pb.PORT_PROTOCOL_UDP:
                transport, _ = await loop.create_datagram_endpoint(
                    lambda: UdpForwarder(self.pool), (self._listen_address, self._published.number)
                )
                return transport
        raise OSError("this node's proxy forwards TCP and UDP only")

    def _failed(self, message: str) -> None:
        if message != self.error:
            log.error(message)
        self.error = message
