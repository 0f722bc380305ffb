"""Published UDP ports: datagrams of one client address go to one backend while it lasts."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import structlog

from swarmlet.network.backends import BackendPool
from swarmlet.network.endpoints import Backend

IDLE_SECONDS = 30.0
CLIENTS_MAX = 4096
WAITING_DATAGRAMS_MAX = 16

Address = tuple[Any, ...]

log = structlog.get_logger(__name__)


class UdpForwarder(asyncio.DatagramProtocol):
    """The listening side of one published port. More clients than CLIENTS_MAX are dropped."""

    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool
        self._transport: asyncio.DatagramTransport | None = None
        self._flows: dict[Address, _Flow] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        flow = self._flows.get(addr)
        if flow is not None and not self._pool.is_active(flow.backend):
            flow.close()
            flow = None
        if flow is None:
            flow = self._open(addr)
        if flow is not None:
            flow.send(data)

    def error_received(self, exc: Exception) -> None:
        log.debug("datagram not delivered to client", error=str(exc))

    def connection_lost(self, exc: Exception | None) -> None:
        for flow in list(self._flows.values()):
            flow.close()

    def answer(self, data: bytes, addr: Address) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, addr)

    def _open(self, addr: Address) -> _Flow | None:
        if len(self._flows) >= CLIENTS_MAX:
            return None
        flow = _Flow.open(self, self._pool, addr)
        if flow is not None:
            self._flows[addr] = flow
        return flow

    def forget(self, addr: Address, flow: _Flow) -> None:
        if self._flows.get(addr) is flow:
            del self._flows[addr]


class _Flow(asyncio.DatagramProtocol):
    """One client address and its backend."""

    def __init__(self, forwarder: UdpForwarder, pool: BackendPool, addr: Address) -> None:
        self.backend = Backend("", "", 0)
        self._forwarder = forwarder
        self._pool = pool
        self._addr = addr
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[bytes] = []
        self._closed = False
        self._idle: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, forwarder: UdpForwarder, pool: BackendPool, addr: Address) -> _Flow | None:
        """None when nobody serves the port: a datagram may be lost, as anywhere."""
        flow = cls(forwarder, pool, addr)
        backend = pool.acquire(flow, ())
        if backend is None:
            return None
        flow.backend = backend
        flow._opening = asyncio.get_running_loop().create_task(flow._connect())
        flow._touch()
        return flow

    def send(self, data: bytes) -> None:
        self._touch()
        if self._transport is not None:
            self._transport.sendto(data)
        elif len(self._waiting) < WAITING_DATAGRAMS_MAX:
            self._waiting.append(data)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
        if self._transport is not None:
            self._transport.close()
        self._pool.release(self, self.backend)
        self._forwarder.forget(self._addr, self)

    def backend_gone(self) -> None:
        self.close()

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._touch()
        self._forwarder.answer(data, self._addr)

    def error_received(self, exc: Exception) -> None:
        # The backend's host says that nobody listens there.
        self._pool.penalise(self.backend)
        self.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: self, remote_addr=(self.backend.host, self.backend.port)
            )
        except OSError as error:
            log.debug("backend not reachable", task=self.backend.task_id, error=str(error))
            self.close()
            return
        if self._closed:
            transport.close()
            return
        self._transport = transport
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            transport.sendto(data)

    def _touch(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.close)
