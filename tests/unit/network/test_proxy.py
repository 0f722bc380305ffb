"""Published ports with real sockets: nothing is lost while endpoints come and go."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from functools import partial
from typing import cast

import pytest

from swarmlet.api import pb
from swarmlet.network import proxy as proxy_module
from swarmlet.network.proxy import PortProxy
from swarmlet.network.splice import ClientConnection
from tests.unit.network.servers import (
    HOST,
    PATIENCE_SECONDS,
    Server,
    a_table,
    connected,
    eventually,
    free_port,
    get,
)

DRAINING = pb.ENDPOINT_STATE_DRAINING


@pytest.fixture
async def proxy() -> AsyncGenerator[PortProxy, None]:
    proxy = PortProxy(HOST)
    yield proxy
    await proxy.close()


async def test_connections_are_spread_over_the_endpoints(proxy: PortProxy) -> None:
    port = free_port()
    servers = [await Server(name).start() for name in ("a", "b", "c")]
    await proxy.apply(a_table(port, *(s.endpoint() for s in servers)))

    answers = [await get(port) for _ in range(9)]

    assert sorted(answers) == [b"a"] * 3 + [b"b"] * 3 + [b"c"] * 3
    for server in servers:
        await server.kill()


async def test_connection_waits_for_the_first_endpoint(proxy: PortProxy) -> None:
    port = free_port()
    server = await Server("late").start()
    await proxy.apply(a_table(port))

    request = asyncio.create_task(get(port))
    await asyncio.sleep(0.05)
    await proxy.apply(a_table(port, server.endpoint()))

    assert await request == b"late"
    await server.kill()


async def test_a_refused_endpoint_is_passed_over(proxy: PortProxy) -> None:
    port = free_port()
    alive = await Server("alive").start()
    dead = await Server("dead").start()
    await dead.kill()
    await proxy.apply(a_table(port, dead.endpoint(), alive.endpoint()))

    answers = [await get(port, "POST") for _ in range(6)]

    assert answers == [b"alive"] * 6
    await alive.kill()


async def test_client_is_reset_when_nobody_comes(proxy: PortProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "ClientConnection", partial(ClientConnection, wait_seconds=0.1))
    port = free_port()
    await proxy.apply(a_table(port))

    assert await get(port) == b""


async def test_rolling_replacement_loses_no_request(proxy: PortProxy) -> None:
    port = free_port()
    servers = [await Server(f"old{i}", delay_seconds=0.01).start() for i in range(3)]
    await proxy.apply(a_table(port, *(s.endpoint() for s in servers)))
    answers: list[bytes] = []
    done = asyncio.Event()

    async def load() -> None:
        while not done.is_set():
            answers.append(await get(port, "POST"))

    clients = [asyncio.create_task(load()) for _ in range(8)]
    for i in range(3):
        old = servers[i]
        table = [s.endpoint(DRAINING if s is old else pb.ENDPOINT_STATE_ACTIVE) for s in servers]
        await proxy.apply(a_table(port, *table))
        await old.kill()
        servers[i] = await Server(f"new{i}", delay_seconds=0.01).start()
        await proxy.apply(a_table(port, *(s.endpoint() for s in servers)))
    await eventually(lambda: answers[-3:].count(b"") == 0 and len(answers) > 50)
    done.set()
    await asyncio.gather(*clients)

    assert answers.count(b"") == 0
    assert {b"new0", b"new1", b"new2"} <= set(answers)
    for server in servers:
        await server.kill()


async def test_apply_returns_when_the_draining_endpoint_has_finished(proxy: PortProxy) -> None:
    port = free_port()
    old = await Server("old", delay_seconds=0.3).start()
    new = await Server("new").start()
    await proxy.apply(a_table(port, old.endpoint()))
    request = asyncio.create_task(get(port))
    await eventually(lambda: old.open == 1)

    await proxy.apply(a_table(port, old.endpoint(DRAINING), new.endpoint()))

    assert old.open == 0
    assert await request == b"old"
    assert await get(port) == b"new"
    for server in (old, new):
        await server.kill()


async def test_a_connection_that_does_not_end_holds_apply_up_only_for_a_while_and_lives_on(
    proxy: PortProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmlet.network.backends.DRAIN_SECONDS", 0.1)
    port = free_port()
    server = await Server("echo", _echo).start()
    await proxy.apply(a_table(port, server.endpoint()))

    async with connected(port) as (reader, writer):
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        async with asyncio.timeout(PATIENCE_SECONDS):
            await proxy.apply(a_table(port, server.endpoint(DRAINING)))
            await proxy.apply(a_table(port))
        writer.write(b"two")
        assert await reader.readexactly(3) == b"two"
    await server.kill()


async def test_half_closed_connections_stay_half_closed(proxy: PortProxy) -> None:
    port = free_port()
    server = await Server("sum", _answer_after_eof).start()
    await proxy.apply(a_table(port, server.endpoint()))

    async with connected(port) as (reader, writer):
        writer.write(b"x" * 300_000)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await reader.read() == b"300000"
    await server.kill()


async def test_a_slow_reader_stops_the_sender(proxy: PortProxy) -> None:
    port = free_port()
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        chunk = b"x" * 65536
        while True:
            writer.write(chunk)
            await writer.drain()
            sent += len(chunk)

    server = await Server("flood", flood).start()
    await proxy.apply(a_table(port, server.endpoint()))

    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (HOST, port))
        before = -1
        async with asyncio.timeout(PATIENCE_SECONDS):
            while before != sent or sent == 0:
                before = sent
                await asyncio.sleep(0.3)

        # Kernel buffers included; without back-pressure it would not have stopped at all.
        assert sent < 64 * 1024 * 1024
        enough = sent + 1_000_000
        received = 0
        async with asyncio.timeout(PATIENCE_SECONDS):
            while received < enough:
                received += len(await asyncio.get_running_loop().sock_recv(client, 1 << 20))
    await server.kill()


async def test_a_request_without_effect_is_asked_again_when_its_task_dies(proxy: PortProxy) -> None:
    port = free_port()
    dying = await Server("dying", delay_seconds=60).start()
    other = await Server("other").start()
    await proxy.apply(a_table(port, dying.endpoint()))
    request = asyncio.create_task(get(port))
    await eventually(lambda: dying.open == 1)
    await proxy.apply(a_table(port, dying.endpoint(), other.endpoint()))

    await dying.kill()

    assert await request == b"other"
    await other.kill()


async def test_a_request_is_asked_again_when_its_node_is_gone_without_a_word(proxy: PortProxy) -> None:
    port = free_port()
    silent = await Server("silent", delay_seconds=60).start()
    other = await Server("other").start()
    await proxy.apply(a_table(port, silent.endpoint()))
    request = asyncio.create_task(get(port))
    await eventually(lambda: silent.open == 1)

    await proxy.apply(a_table(port, other.endpoint()))

    assert await request == b"other"
    for server in (silent, other):
        await server.kill()


async def test_a_request_with_effect_is_never_asked_twice(proxy: PortProxy) -> None:
    port = free_port()
    dying = await Server("dying", delay_seconds=60).start()
    other = await Server("other").start()
    await proxy.apply(a_table(port, dying.endpoint()))
    request = asyncio.create_task(get(port, "POST"))
    await eventually(lambda: dying.open == 1)
    await proxy.apply(a_table(port, dying.endpoint(), other.endpoint()))

    await dying.kill()

    assert await request == b""
    assert other.accepted == 0
    await other.kill()


async def test_a_port_that_is_taken_is_an_error_until_it_is_free(
    proxy: PortProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmlet.network.proxy.BIND_RETRY_SECONDS", 0.02)
    server = await Server("web").start()
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        port = holder.getsockname()[1]
        await proxy.apply(a_table(port, server.endpoint()))
        assert "cannot be bound" in next(iter(proxy.errors().values()))

    await eventually(lambda: not proxy.errors())

    assert await get(port) == b"web"
    await server.kill()


async def test_listeners_of_services_that_are_gone_are_closed(proxy: PortProxy) -> None:
    port = free_port()
    await proxy.apply(a_table(port))
    await proxy.apply([])

    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, port)


async def test_datagrams_reach_a_task_and_come_back(proxy: PortProxy) -> None:
    loop = asyncio.get_running_loop()
    port = free_port(socket.SOCK_DGRAM)
    server, _ = await loop.create_datagram_endpoint(_UdpEcho, (HOST, 0))
    table = a_table(port)
    table[0].ports[0].protocol = pb.PORT_PROTOCOL_UDP
    table[0].endpoints.add(task_id="a").addresses.add(
        protocol=pb.PORT_PROTOCOL_UDP,
        target_port=80,
        address=HOST,
        port=server.get_extra_info("sockname")[1],
    )
    await proxy.apply(table)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        await loop.sock_sendto(client, b"ping", (HOST, port))
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await loop.sock_recv(client, 100)

    assert answer == b"ping"
    server.close()


class _UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        cast(asyncio.DatagramTransport, self._transport).sendto(data, addr)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(4096):
        writer.write(data)


async def _answer_after_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    data = await reader.read(-1)
    writer.write(str(len(data)).encode())
    await writer.drain()
