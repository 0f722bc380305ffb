"""A task leaves the balancers everywhere before it is told to stop."""

from __future__ import annotations

import asyncio

from swarmlet.api import pb
from swarmlet.store.store import Store, Transaction
from tests.builders import a_node, a_service, a_task, make_store
from tests.unit.dispatcher.fakes import FakeAgent, a_published_service, a_serving_task, change_task, leading

DRAINING = pb.ENDPOINT_STATE_DRAINING


async def _settle() -> None:
    """Long enough for everything that does not wait for a confirmation."""
    await asyncio.sleep(0.1)


def _world() -> tuple[Store, pb.Node, pb.Node, pb.Service, pb.Task]:
    a, b = a_node("a"), a_node("b")
    service = a_published_service()
    task = a_serving_task(service, a.id)
    return make_store(a, b, service, task, a_serving_task(service, b.id, slot=2)), a, b, service, task


async def _set_state(store: Store, node_id: str, state: pb.NodeState.ValueType) -> None:
    def edit(transaction: Transaction) -> None:
        node = pb.Node()
        node.CopyFrom(transaction.get(pb.Node, node_id) or node)
        node.status.state = state
        transaction.update(node)

    await store.update(edit)


async def test_task_leaves_the_balancer_before_it_is_stopped() -> None:
    store, a, b, service, task = _world()

    async with leading(store) as dispatcher:
        own = await FakeAgent(dispatcher, a.id).connect()
        other = await FakeAgent(dispatcher, b.id).connect()
        other.confirms = False
        await change_task(store, task.id, desired=pb.TASK_STATE_SHUTDOWN)
        for agent in (own, other):
            await agent.until(
                lambda agent=agent: agent.endpoint_states(service.id)[task.id] == DRAINING  # type: ignore[misc]
            )
        await _settle()
        assert own.desired(task.id) == pb.TASK_STATE_RUNNING

        other.confirm()
        await own.until(lambda: own.desired(task.id) == pb.TASK_STATE_SHUTDOWN)

        await own.close()
        await other.close()


async def test_an_agent_that_never_confirms_holds_a_shutdown_up_only_for_a_while() -> None:
    store, a, b, _, task = _world()

    async with leading(store, confirm_wait_seconds=0.3) as dispatcher:
        own = await FakeAgent(dispatcher, a.id).connect()
        stuck = await FakeAgent(dispatcher, b.id, confirms=False).connect()
        await change_task(store, task.id, desired=pb.TASK_STATE_SHUTDOWN)
        await own.until(lambda: own.desired(task.id) == pb.TASK_STATE_SHUTDOWN)

        assert not stuck.confirms
        await own.close()
        await stuck.close()


async def test_a_node_that_is_down_holds_nothing_up() -> None:
    a, b = a_node("a"), a_node("b", state=pb.NODE_STATE_DOWN)
    service = a_published_service()
    task = a_serving_task(service, a.id)
    store = make_store(a, b, service, task)

    async with leading(store) as dispatcher:
        own = await FakeAgent(dispatcher, a.id).connect()
        await change_task(store, task.id, desired=pb.TASK_STATE_SHUTDOWN)

        await own.until(lambda: own.desired(task.id) == pb.TASK_STATE_SHUTDOWN)
        await own.close()


async def test_a_node_that_was_down_for_a_moment_learns_of_a_shutdown_once_all_confirmed() -> None:
    store, a, b, service, task = _world()

    async with leading(store) as dispatcher:
        other = await FakeAgent(dispatcher, b.id, confirms=False).connect()
        other.confirm()
        await _set_state(store, a.id, pb.NODE_STATE_DOWN)
        await change_task(store, task.id, desired=pb.TASK_STATE_SHUTDOWN)
        await other.until(lambda: task.id not in other.endpoint_states(service.id))
        own = await FakeAgent(dispatcher, a.id).connect()
        await _settle()
        assert own.desired(task.id) == pb.TASK_STATE_RUNNING

        other.confirm()
        await own.until(lambda: own.desired(task.id) == pb.TASK_STATE_SHUTDOWN)

        await own.close()
        await other.close()


async def test_a_new_leader_holds_a_shutdown_back_also_from_a_node_that_is_down() -> None:
    store, a, b, _, task = _world()
    await _set_state(store, a.id, pb.NODE_STATE_DOWN)

    async with leading(store) as dispatcher:
        await change_task(store, task.id, desired=pb.TASK_STATE_SHUTDOWN)
        other = await FakeAgent(dispatcher, b.id, confirms=False).connect()
        own = await FakeAgent(dispatcher, a.id).connect()
        await _settle()
        assert own.desired(task.id) == pb.TASK_STATE_RUNNING

        other.confirm()
        await own.until(lambda: own.desired(task.id) == pb.TASK_STATE_SHUTDOWN)

        await own.close()
        await other.close()


async def test_a_task_of_a_removed_service_leaves_the_balancers_first_too() -> None:
    store, a, b, service, task = _world()

    async with leading(store) as dispatcher:
        own = await FakeAgent(dispatcher, a.id).connect()
        other = await FakeAgent(dispatcher, b.id, confirms=False).connect()
        other.confirm()
        await store.update(lambda tx: tx.delete(pb.Service, service.id))
        await change_task(store, task.id, desired=pb.TASK_STATE_REMOVE)
        await other.until(lambda: service.id not in other.services)
        await _settle()
        assert own.desired(task.id) == pb.TASK_STATE_RUNNING

        other.confirm()
        await own.until(lambda: own.desired(task.id) == pb.TASK_STATE_REMOVE)

        await own.close()
        await other.close()


async def test_a_task_without_published_ports_is_stopped_at_once() -> None:
    a, b = a_node("a"), a_node("b")
    service = a_service()
    task = a_task(service, node_id=a.id)
    store = make_store(a, b, service, task)

    async with leading(store) as dispatcher:
        own = await FakeAgent(dispatcher, a.id).connect()
        await change_task(store, task.id, desired=pb.TASK_STATE_SHUTDOWN)

        await own.until(lambda: own.desired(task.id) == pb.TASK_STATE_SHUTDOWN)
        await own.close()


async def test_a_new_leader_waits_for_the_nodes_to_confirm_its_own_table() -> None:
    store, a, b, service, task = _world()

    async with leading(store) as first:
        own = await FakeAgent(first, a.id).connect()
        other = await FakeAgent(first, b.id, confirms=False).connect()
        await change_task(store, task.id, desired=pb.TASK_STATE_SHUTDOWN)
        await own.until(lambda: own.endpoint_states(service.id)[task.id] == DRAINING)
    await own.close()
    await other.close()

    async with leading(store) as second:
        own = await FakeAgent(second, a.id).connect()
        await _settle()
        assert own.desired(task.id) == pb.TASK_STATE_RUNNING
        other = await FakeAgent(second, b.id, confirms=False).connect()
        await _settle()
        assert own.desired(task.id) == pb.TASK_STATE_RUNNING

        other.confirm()
        await own.until(lambda: own.desired(task.id) == pb.TASK_STATE_SHUTDOWN)
        await own.close()
        await other.close()


async def test_a_new_leader_does_not_wait_for_ever_for_nodes_that_do_not_return() -> None:
    store, a, _, _, task = _world()
    await change_task(store, task.id, desired=pb.TASK_STATE_SHUTDOWN)

    async with leading(store, confirm_wait_seconds=0.2) as dispatcher:
        own = await FakeAgent(dispatcher, a.id).connect()

        await own.until(lambda: own.desired(task.id) == pb.TASK_STATE_SHUTDOWN)
        await own.close()


async def test_a_session_that_begins_in_between_does_not_learn_of_the_shutdown_early() -> None:
    store, a, b, service, task = _world()

    async with leading(store) as dispatcher:
        other = await FakeAgent(dispatcher, b.id).connect()
        other.confirms = False
        await change_task(store, task.id, desired=pb.TASK_STATE_SHUTDOWN)
        await other.until(lambda: other.endpoint_states(service.id)[task.id] == DRAINING)

        own = await FakeAgent(dispatcher, a.id).connect()
        assert own.desired(task.id) == pb.TASK_STATE_RUNNING

        other.confirm()
        await own.until(lambda: own.desired(task.id) == pb.TASK_STATE_SHUTDOWN)
        await own.close()
        await other.close()


async def test_a_task_of_before_an_update_keeps_its_own_target_port() -> None:
    node = a_node()
    service = a_published_service()
    old = a_serving_task(service, node.id)
    service.endpoint.ports[0].target_port = 8000
    store = make_store(node, service, old)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()

        endpoint = agent.services[service.id].endpoints[0]
        assert [p.target_port for p in endpoint.ports] == [80]
        await agent.close()
