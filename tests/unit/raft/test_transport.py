"""Connections between managers: in order, once, nothing across a reconnect, nobody held up."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from swarmlet.api import pb
from swarmlet.api.v1 import raft_pb2_grpc
from swarmlet.raft import transport as transport_module
from swarmlet.raft.transport import GrpcTransport, RaftServicer
from tests.unit.raft.managers import Relay, connector, eventually, peer_of


class Events:
    """What the node behind a transport is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.terms: list[int] = []

    def on_message(self, peer: str, message: pb.RaftMessage) -> None:
        self.seen.append(("message", peer))
        self.terms.append(message.term)

    def on_connected(self, peer: str) -> None:
        self.seen.append(("connected", peer))

    def on_disconnected(self, peer: str) -> None:
        self.seen.append(("disconnected", peer))

    def count(self, kind: str) -> int:
        return sum(1 for k, _ in self.seen if k == kind)


@asynccontextmanager
async def listening(events: Events, relay: Relay) -> AsyncIterator[None]:
    server = grpc.aio.server()
    raft_pb2_grpc.add_RaftServicer_to_server(RaftServicer(events, peer_of), server)
    relay.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield
    finally:
        await server.stop(grace=0)


@asynccontextmanager
async def calling(
    events: Events, connect: Callable[[str, str], grpc.aio.Channel] | None = None
) -> AsyncIterator[GrpcTransport]:
    transport = GrpcTransport(connect or connector("a"), rng=random.Random(1))
    transport.attach(events)
    try:
        yield transport
    finally:
        await transport.close()


@asynccontextmanager
async def relayed() -> AsyncIterator[Relay]:
    relay = Relay()
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


def message(term: int, size: int = 0) -> pb.RaftMessage:
    return pb.RaftMessage(term=term, snapshot_chunk=pb.SnapshotChunk(data=bytes(size)))


async def test_messages_arrive_in_order_and_once() -> None:
    a, b = Events(), Events()
    async with relayed() as relay, listening(b, relay), calling(a) as transport:
        transport.set_peers({"b": relay.address})
        await eventually(lambda: a.count("connected") == 1)

        for term in range(500):
            transport.send("b", message(term))

        await eventually(lambda: len(b.terms) == 500)
        assert b.terms == list(range(500))
        assert {peer for _, peer in b.seen} == {"a"}, "the caller is who its connection says"


async def test_a_peer_that_is_not_there_is_never_connected() -> None:
    a = Events()
    async with relayed() as relay, calling(a) as transport:
        relay.target = "127.0.0.1:1"
        transport.set_peers({"b": relay.address, "c": "127.0.0.1:1"})

        await asyncio.sleep(1.0)

        assert a.seen == []


async def test_a_peer_that_refuses_the_caller_is_never_connected() -> None:
    class Refusing(raft_pb2_grpc.RaftServicer):
        calls = 0

        async def Stream(
            self, request_iterator: object, context: grpc.aio.ServicerContext[pb.RaftMessage, pb.RaftAck]
        ) -> pb.RaftAck:
            Refusing.calls += 1
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "removed")

    a = Events()
    server = grpc.aio.server()
    raft_pb2_grpc.add_RaftServicer_to_server(Refusing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with calling(a) as transport:
            transport.set_peers({"b": f"127.0.0.1:{port}"})
            await eventually(lambda: Refusing.calls >= 3)

            assert a.seen == []
    finally:
        await server.stop(grace=0)


async def test_what_was_sent_without_a_connection_is_lost() -> None:
    a, b = Events(), Events()
    async with relayed() as relay, calling(a) as transport:
        relay.target = "127.0.0.1:1"
        transport.set_peers({"b": relay.address})
        transport.send("b", message(1))

        async with listening(b, relay):
            await eventually(lambda: a.count("connected") == 1)
            transport.send("b", message(2))
            await eventually(lambda: bool(b.terms))

            assert b.terms == [2]


async def test_nothing_survives_a_reconnect() -> None:
    a, b = Events(), Events()
    async with relayed() as relay, listening(b, relay), calling(a) as transport:
        transport.set_peers({"b": relay.address})
        await eventually(lambda: a.count("connected") == 1)
        transport.send("b", message(1))
        await eventually(lambda: b.terms == [1])

        relay.is_cut = True
        relay.break_connections()
        for term in range(2, 50):
            transport.send("b", message(term))
        await eventually(lambda: a.count("disconnected") == 1)
        transport.send("b", message(50))
        relay.is_cut = False
        await eventually(lambda: a.count("connected") == 2)
        transport.send("b", message(51))

        await eventually(lambda: b.terms[-1] == 51)
        assert b.terms == [1, 51]
        assert [k for k, _ in a.seen] == ["connected", "disconnected", "connected"]


async def test_the_server_drops_what_is_left_of_a_call_once_the_peer_has_made_a_new_one() -> None:
    b = Events()
    servicer = RaftServicer(b, lambda context: "a")
    first_queue: asyncio.Queue[pb.RaftMessage] = asyncio.Queue()
    second_queue: asyncio.Queue[pb.RaftMessage] = asyncio.Queue()

    class Context:
        async def send_initial_metadata(self, metadata: object) -> None:
            return None

    async def requests(queue: asyncio.Queue[pb.RaftMessage]) -> AsyncIterator[pb.RaftMessage]:
        while True:
            yield await queue.get()

    context: grpc.aio.ServicerContext[pb.RaftMessage, pb.RaftAck] = Context()  # type: ignore[assignment]
    first = asyncio.create_task(servicer.Stream(requests(first_queue), context))
    first_queue.put_nowait(message(1))
    await eventually(lambda: b.terms == [1])
    second = asyncio.create_task(servicer.Stream(requests(second_queue), context))
    second_queue.put_nowait(message(2))
    await eventually(lambda: b.terms == [1, 2])

    first_queue.put_nowait(message(3))
    await first
    second_queue.put_nowait(message(4))

    await eventually(lambda: len(b.terms) == 3)
    assert b.terms == [1, 2, 4]
    second.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await second


async def test_a_queue_that_overflows_breaks_the_connection_and_a_new_one_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport_module, "QUEUE_MESSAGES_MAX", 10)
    a, b = Events(), Events()
    async with relayed() as relay, listening(b, relay), calling(a) as transport:
        transport.set_peers({"b": relay.address})
        await eventually(lambda: a.count("connected") == 1)

        for term in range(1, 31):
            transport.send("b", message(term))

        await eventually(lambda: a.count("connected") == 2)
        transport.send("b", message(99))
        await eventually(lambda: bool(b.terms) and b.terms[-1] == 99)
        assert b.terms[:-1] == list(range(1, len(b.terms))), "no gap within a connection"


async def test_nothing_follows_a_message_that_was_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "QUEUE_BYTES_MAX", 1000)
    a, b = Events(), Events()
    async with relayed() as relay, listening(b, relay), calling(a) as transport:
        transport.set_peers({"b": relay.address})
        await eventually(lambda: a.count("connected") == 1)

        transport.send("b", message(1))
        transport.send("b", message(2, size=2000))
        transport.send("b", message(3))

        await eventually(lambda: a.count("connected") == 2)
        assert 3 not in b.terms


async def test_a_link_outlives_an_error_that_nobody_foresaw() -> None:
    attempts = 0
    real = connector("a")

    def connect(peer: str, address: str) -> grpc.aio.Channel:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ValueError("the certificate is being replaced")
        return real(peer, address)

    a, b = Events(), Events()
    async with relayed() as relay, listening(b, relay), calling(a, connect) as transport:
        transport.set_peers({"b": relay.address})

        await eventually(lambda: a.count("connected") == 1)


async def test_a_changed_address_makes_a_new_connection() -> None:
    a, b, c = Events(), Events(), Events()
    async with relayed() as old, relayed() as new, listening(b, old), listening(c, new):
        async with calling(a) as transport:
            transport.set_peers({"b": old.address})
            await eventually(lambda: a.count("connected") == 1)

            transport.set_peers({"b": new.address})
            await eventually(lambda: a.count("connected") == 2)
            transport.send("b", message(7))

            await eventually(lambda: c.terms == [7])
            assert b.terms == []


async def test_closing_leaves_no_task_behind() -> None:
    a, b = Events(), Events()
    async with relayed() as relay, listening(b, relay):
        before = asyncio.all_tasks()
        async with calling(a) as transport:
            transport.set_peers({"b": relay.address, "c": "127.0.0.1:1"})
            await eventually(lambda: a.count("connected") == 1)
            transport.set_peers({})

        left = {t for t in asyncio.all_tasks() - before if "raft-link" in t.get_name()}
        assert left == set()
    assert a.seen[-1] == ("disconnected", "b")
