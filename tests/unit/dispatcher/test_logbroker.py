"""Logs, fanned in from agents in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import NotFound
from swarmlet.manager.dispatcher.dispatcher import Dispatcher
from swarmlet.manager.logbroker import LogBroker
from swarmlet.store.store import Store
from tests.builders import a_node, a_service, a_task, make_store
from tests.unit.dispatcher.fakes import PATIENCE_SECONDS, FakeAgent, leading

OPTIONS = pb.LogOptions(stdout=True, tail=-1)
FOLLOW = pb.LogOptions(stdout=True, tail=-1, follow=True)


class Reader:
    """Collects what service_logs yields."""

    def __init__(self, broker: LogBroker, service_id: str | None, options: pb.LogOptions = OPTIONS) -> None:
        self.lines: list[bytes] = []
        self.warnings: list[str] = []
        self.more = asyncio.Event()
        self._broker = broker
        self.done = asyncio.create_task(self._read(service_id, options))

    async def _read(self, service_id: str | None, options: pb.LogOptions) -> None:
        async for response in self._broker.service_logs(service_id=service_id, task_ids=(), options=options):
            self.lines += [line.data for line in response.lines]
            self.warnings += response.warnings
            self.more.set()

    async def finished(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.done


def _broker(store: Store, dispatcher: Dispatcher) -> LogBroker:
    return LogBroker(store, dispatcher, rng=random.Random(2))


async def _batches(agent: FakeAgent, index: int, lines: Sequence[bytes]) -> AsyncIterator[pb.LogBatch]:
    subscription_id = agent.subscriptions[index].id
    yield pb.LogBatch(
        subscription_id=subscription_id,
        lines=[pb.LogLine(data=data, node_id=agent.node_id) for data in lines],
    )
    yield pb.LogBatch(subscription_id=subscription_id, last=True)


async def test_lines_of_all_nodes_come_together_and_then_it_ends() -> None:
    nodes = [a_node("a"), a_node("b")]
    service = a_service()
    tasks = [a_task(service, slot=i + 1, node_id=node.id) for i, node in enumerate(nodes)]
    store = make_store(*nodes, service, *tasks)

    async with leading(store) as dispatcher:
        broker = _broker(store, dispatcher)
        agents = [await FakeAgent(dispatcher, node.id).connect() for node in nodes]
        reader = Reader(broker, service.id)
        for agent, line in zip(agents, (b"one", b"two"), strict=True):
            await agent.until(lambda agent=agent: bool(agent.subscriptions))  # type: ignore[misc]
            await broker.publish(agent.node_id, _batches(agent, 0, [line]))
        await reader.finished()

        assert sorted(reader.lines) == [b"one", b"two"]
        assert reader.warnings == []
        for agent in agents:
            await agent.close()


async def test_a_node_that_is_not_connected_is_warned_of() -> None:
    node = a_node("gone")
    service = a_service()
    store = make_store(node, service, a_task(service, node_id=node.id))

    async with leading(store) as dispatcher:
        reader = Reader(_broker(store, dispatcher), service.id)
        await reader.finished()

    assert reader.warnings == ["incomplete log stream: node gone is not available"]


async def test_a_node_that_leaves_in_between_is_warned_of() -> None:
    node = a_node()
    service = a_service()
    store = make_store(node, service, a_task(service, node_id=node.id))

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        reader = Reader(_broker(store, dispatcher), service.id)
        await agent.until(lambda: bool(agent.subscriptions))
        await agent.close()
        await reader.finished()

    assert reader.warnings == ["incomplete log stream: node h was disconnected"]


async def test_following_takes_in_new_tasks_and_ends_with_the_service() -> None:
    node = a_node()
    service = a_service()
    store = make_store(node, service)
    task = a_task(service, node_id=node.id)

    async with leading(store) as dispatcher:
        broker = _broker(store, dispatcher)
        agent = await FakeAgent(dispatcher, node.id).connect()
        reader = Reader(broker, service.id, FOLLOW)
        await store.update(lambda tx: tx.create(task))
        await agent.until(lambda: bool(agent.subscriptions))
        await broker.publish(node.id, _batches(agent, 0, [b"new"]))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await reader.more.wait()
        assert reader.lines == [b"new"]
        assert not reader.done.done()

        await store.update(lambda tx: tx.delete(pb.Service, service.id))
        await reader.finished()
        await agent.close()


async def test_a_reader_that_goes_away_ends_the_subscription() -> None:
    node = a_node()
    service = a_service()
    store = make_store(node, service, a_task(service, node_id=node.id))

    async with leading(store) as dispatcher:
        broker = _broker(store, dispatcher)
        agent = await FakeAgent(dispatcher, node.id).connect()
        reader = Reader(broker, service.id, FOLLOW)
        await agent.until(lambda: bool(agent.subscriptions))
        reader.done.cancel()
        await agent.until(lambda: len(agent.subscriptions) == 2)

        assert agent.subscriptions[1].close
        with pytest.raises(NotFound):
            await broker.publish(node.id, _batches(agent, 0, [b"late"]))
        await agent.close()


async def test_logs_of_a_service_that_does_not_exist_are_not_found() -> None:
    store = make_store()

    async with leading(store) as dispatcher:
        with pytest.raises(NotFound):
            await Reader(_broker(store, dispatcher), "nothing").finished()
