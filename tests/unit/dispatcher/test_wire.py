"""The real agent and the real dispatcher over gRPC, without certificates."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from swarmlet.agent.agent import Agent
from swarmlet.agent.grpclink import GrpcLink
from swarmlet.api import pb
from swarmlet.api.errors import NotFound
from swarmlet.api.v1 import dispatcher_pb2_grpc
from swarmlet.ca.authorize import Peer
from swarmlet.manager.dispatcher import grpc as adapter
from swarmlet.manager.dispatcher.dispatcher import Dispatcher
from swarmlet.manager.logbroker import LogBroker
from swarmlet.network.embedded import NoProxy
from swarmlet.runtime.simulated import Behaviour, SimulatedRuntime
from swarmlet.store.store import Store
from tests.builders import NOW, a_node, a_service, a_task, make_store
from tests.unit.dispatcher.fakes import PATIENCE_SECONDS, change_task, leading, stored

NODE = a_node("worker", state=pb.NODE_STATE_UNKNOWN)


@pytest.fixture(autouse=True)
def _caller_is_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "peer_of", lambda _: Peer(NODE.id, pb.NODE_ROLE_WORKER, "cluster"))


@asynccontextmanager
async def serving(
    dispatcher: Dispatcher, broker: LogBroker, leader_address: Callable[[], str] = lambda: ""
) -> AsyncGenerator[str, None]:
    server = grpc.aio.server()
    service = adapter.DispatcherService(dispatcher, broker, leader_address=leader_address)
    dispatcher_pb2_grpc.add_DispatcherServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def agent_at(addresses: list[str], state_dir: Path) -> AsyncGenerator[asyncio.Task[None], None]:
    link = GrpcLink(addresses, channel=grpc.aio.insecure_channel, rng=random.Random(3))
    agent = Agent(
        node_id=NODE.id,
        runtime=SimulatedRuntime("worker", behaviour=lambda _: Behaviour(log_lines=("hello",))),
        state_dir=state_dir,
        link=link,
        network=NoProxy(),
        now=lambda: NOW,
        rng=random.Random(4),
        boot_id="boot",
        address="",
    )
    running = asyncio.create_task(agent.run())
    try:
        yield running
    finally:
        await agent.stop()
        await asyncio.gather(running, return_exceptions=True)


def _state(store: Store, task: pb.Task) -> pb.TaskState.ValueType:
    found = store.view.tasks.get(task.id)
    assert found is not None
    return found.status.state


async def test_a_task_runs_says_something_and_stops(tmp_path: Path) -> None:
    service = a_service()
    task = a_task(service, state=pb.TASK_STATE_ASSIGNED, node_id=NODE.id)
    store = make_store(NODE, service, task)

    async with AsyncExitStack() as stack:
        dispatcher = await stack.enter_async_context(leading(store))
        broker = LogBroker(store, dispatcher, rng=random.Random(5))
        address = await stack.enter_async_context(serving(dispatcher, broker))
        await stack.enter_async_context(agent_at([address], tmp_path))
        await stored(store, lambda: _state(store, task) == pb.TASK_STATE_RUNNING)
        node = store.view.nodes.get(NODE.id)
        assert node is not None
        assert node.status.addr == "127.0.0.1"

        lines: list[bytes] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            options = pb.LogOptions(stdout=True, tail=-1)
            async for response in broker.service_logs(service_id=service.id, task_ids=(), options=options):
                assert not response.warnings
                lines += [line.data for line in response.lines]
        assert lines == [b"hello"]

        await change_task(store, task.id, desired=pb.TASK_STATE_SHUTDOWN)
        await stored(store, lambda: _state(store, task) == pb.TASK_STATE_SHUTDOWN)


async def test_an_agent_finds_the_leader_through_a_follower(tmp_path: Path) -> None:
    store = make_store(NODE)
    follower_store = make_store(NODE)

    async with AsyncExitStack() as stack:
        leader = await stack.enter_async_context(leading(store))
        leader_address = await stack.enter_async_context(
            serving(leader, LogBroker(store, leader, rng=random.Random(5)))
        )
        async with leading(follower_store) as follower:
            pass
        follower_address = await stack.enter_async_context(
            serving(
                follower, LogBroker(follower_store, follower, rng=random.Random(5)), lambda: leader_address
            )
        )

        await stack.enter_async_context(agent_at([follower_address], tmp_path))

        await stored(store, lambda: bool(store.view.nodes.find("hostname", "worker")) and _is_ready(store))


async def test_an_unknown_node_is_told_so(tmp_path: Path) -> None:
    store = make_store()

    async with AsyncExitStack() as stack:
        dispatcher = await stack.enter_async_context(leading(store))
        broker = LogBroker(store, dispatcher, rng=random.Random(5))
        address = await stack.enter_async_context(serving(dispatcher, broker))
        running = await stack.enter_async_context(agent_at([address], tmp_path))

        with pytest.raises(NotFound):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await running


def _is_ready(store: Store) -> bool:
    node = store.view.nodes.get(NODE.id)
    return node is not None and node.status.state == pb.NODE_STATE_READY


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("unix:/run/x.sock", ""),
    ],
)
def test_the_callers_host_is_read_from_grpcs_name(peer: str, host: str) -> None:
    assert adapter.host_of(peer) == host
