"""Which nodes count as there."""

from __future__ import annotations

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import Unavailable
from swarmlet.store.store import Store, Transaction
from tests.builders import a_cluster, a_node, a_service, a_task, make_store
from tests.unit.dispatcher.fakes import FakeAgent, a_published_service, a_serving_task, leading, stored


def _state(store: Store, node_id: str) -> pb.NodeState.ValueType:
    node = store.view.nodes.get(node_id)
    assert node is not None
    return node.status.state


async def test_a_node_that_misses_its_heartbeats_is_down() -> None:
    node = a_node()
    store = make_store(node)

    async with leading(store, heartbeat_seconds=0.1) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        agent.stop_heartbeats()
        await stored(store, lambda: _state(store, node.id) == pb.NODE_STATE_DOWN)
        await agent.until(lambda: agent.error is not None)

        found = store.view.nodes.get(node.id)
        assert found is not None
        assert found.status.message == "heartbeat failure"
        assert isinstance(agent.error, Unavailable)
        await agent.close()


async def test_agents_hear_of_another_heartbeat_period_in_the_middle_of_a_session() -> None:
    node = a_node()
    cluster = a_cluster()
    store = make_store(node, cluster)

    def lengthen(transaction: Transaction) -> None:
        changed = pb.Cluster()
        changed.CopyFrom(transaction.view.clusters.get(cluster.id) or cluster)
        changed.spec.dispatcher.heartbeat_period_ns = 30_000_000_000
        transaction.update(changed)

    async with leading(store, heartbeat_seconds=None) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        await store.update(lengthen)

        await agent.until(lambda: agent.info is not None and 27e9 <= agent.info.heartbeat_period_ns <= 33e9)
        await agent.close()


async def test_a_broken_stream_alone_does_not_make_a_node_down() -> None:
    node = a_node()
    store = make_store(node)

    async with leading(store, heartbeat_seconds=0.3) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        await agent.close()
        assert _state(store, node.id) == pb.NODE_STATE_READY

        again = await FakeAgent(dispatcher, node.id).connect()
        assert _state(store, node.id) == pb.NODE_STATE_READY
        await again.close()
        await stored(store, lambda: _state(store, node.id) == pb.NODE_STATE_DOWN)


async def test_a_node_that_returns_is_ready_again() -> None:
    node = a_node(state=pb.NODE_STATE_DOWN)
    node.status.message = "heartbeat failure"
    store = make_store(node)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()

        found = store.view.nodes.get(node.id)
        assert found is not None
        assert (found.status.state, found.status.message) == (pb.NODE_STATE_READY, "")
        await agent.close()


async def test_a_new_leader_waits_for_nodes_before_it_calls_them_down() -> None:
    here, gone = a_node("here"), a_node("gone")
    store = make_store(here, gone)

    async with leading(store, heartbeat_seconds=0.2) as dispatcher:
        assert _state(store, gone.id) == pb.NODE_STATE_READY
        agent = await FakeAgent(dispatcher, here.id).connect()
        await stored(store, lambda: _state(store, gone.id) == pb.NODE_STATE_DOWN)

        assert _state(store, here.id) == pb.NODE_STATE_READY
        await agent.close()


async def test_endpoints_of_a_node_that_goes_down_leave_the_table() -> None:
    watching, dying = a_node("watching"), a_node("dying")
    service = a_published_service()
    tasks = [a_serving_task(service, watching.id), a_serving_task(service, dying.id, slot=2)]
    store = make_store(watching, dying, service, *tasks)

    async with leading(store, heartbeat_seconds=0.2) as dispatcher:
        agent = await FakeAgent(dispatcher, watching.id).connect()
        assert set(agent.endpoint_states(service.id)) == {t.id for t in tasks}

        await agent.until(lambda: set(agent.endpoint_states(service.id)) == {tasks[0].id})
        await agent.close()


async def test_tasks_of_a_node_that_stays_down_are_orphaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmlet.manager.dispatcher.liveness.ORPHAN_SECONDS", 0.1)
    node = a_node(state=pb.NODE_STATE_DOWN)
    service = a_service()
    running = a_task(service, node_id=node.id)
    ended = a_task(service, node_id=node.id, state=pb.TASK_STATE_COMPLETE)
    store = make_store(node, service, running, ended)

    async with leading(store):
        await stored(store, lambda: bool(store.view.tasks.find("state", pb.TASK_STATE_ORPHANED)))

    assert [t.id for t in store.view.tasks.find("state", pb.TASK_STATE_ORPHANED)] == [running.id]
