"""What agents are told, and what of theirs is stored."""

from __future__ import annotations

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import NotFound, NotLeader, Unavailable
from tests.builders import a_node, a_secret, a_service, a_task, make_store
from tests.unit.dispatcher.fakes import FakeAgent, a_published_service, change_task, leading, stored


async def test_node_becomes_ready_with_what_it_says_of_itself() -> None:
    node = a_node(state=pb.NODE_STATE_UNKNOWN)
    store = make_store(node)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect(address="10.1.2.3")

        found = store.view.nodes.get(node.id)
        assert found is not None
        assert (found.status.state, found.status.addr) == (pb.NODE_STATE_READY, "10.1.2.3")
        assert found.description.hostname == "h"
        assert agent.info is not None
        assert [m.address for m in agent.info.managers] == ["10.0.0.1:2377"]
        await agent.close()


async def test_an_agent_without_address_has_the_one_the_manager_sees() -> None:
    node = a_node()
    store = make_store(node)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()

        found = store.view.nodes.get(node.id)
        assert found is not None
        assert found.status.addr == "10.0.0.9"
        await agent.close()


async def test_a_node_that_is_not_of_the_swarm_is_refused() -> None:
    async with leading(make_store()) as dispatcher:
        agent = await FakeAgent(dispatcher, "stranger").connect()

    assert isinstance(agent.error, NotFound)


async def test_a_manager_that_does_not_lead_refuses() -> None:
    node = a_node()
    async with leading(make_store(node)) as dispatcher:
        pass

    agent = await FakeAgent(dispatcher, node.id).connect()

    assert isinstance(agent.error, NotLeader)


@pytest.mark.parametrize("node_id", ["known", "of which only the new leader knows"])
async def test_a_leader_that_was_replaced_without_noticing_tells_nobody_its_old_state(node_id: str) -> None:
    async def barrier() -> None:
        raise NotLeader("10.0.0.2:2377")

    async with leading(make_store(a_node(id="known")), barrier=barrier) as dispatcher:
        agent = await FakeAgent(dispatcher, node_id).connect()

    assert isinstance(agent.error, NotLeader)
    assert agent.error.leader_address == "10.0.0.2:2377"
    assert agent.complete_sets == 0


async def test_the_end_of_leadership_ends_sessions() -> None:
    node = a_node()
    async with leading(make_store(node)) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()

    await agent.until(lambda: agent.error is not None)

    assert isinstance(agent.error, NotLeader)
    await agent.close()


async def test_first_comes_everything_and_then_what_changes() -> None:
    node = a_node()
    service = a_service()
    first = a_task(service, state=pb.TASK_STATE_ASSIGNED, node_id=node.id)
    elsewhere = a_task(service, slot=2, state=pb.TASK_STATE_ASSIGNED, node_id="other")
    too_early = a_task(service, slot=3, state=pb.TASK_STATE_PENDING)
    later = a_task(service, slot=4, state=pb.TASK_STATE_ASSIGNED, node_id=node.id)
    store = make_store(node, service, first, elsewhere, too_early)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        assert set(agent.tasks) == {first.id}

        await store.update(lambda tx: tx.create(later))
        await agent.until(lambda: set(agent.tasks) == {first.id, later.id})
        await store.update(lambda tx: tx.delete(pb.Task, first.id))
        await agent.until(lambda: set(agent.tasks) == {later.id})

        assert agent.complete_sets == 1
        assert agent.versions == sorted(agent.versions)
        await agent.close()


async def test_a_desired_state_reaches_the_agent_and_its_own_reports_do_not_come_back() -> None:
    node = a_node()
    service = a_service()
    task = a_task(service, state=pb.TASK_STATE_ASSIGNED, node_id=node.id)
    store = make_store(node, service, task)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        agent.report(task.id, pb.TASK_STATE_RUNNING)
        await agent.until(lambda: agent.confirmations == [1])
        versions_before = len(agent.versions)
        await change_task(store, task.id, desired=pb.TASK_STATE_SHUTDOWN)
        await agent.until(lambda: agent.desired(task.id) == pb.TASK_STATE_SHUTDOWN)

        assert len(agent.versions) == versions_before + 1
        await agent.close()


async def test_secrets_come_with_the_first_task_that_needs_them_and_go_with_the_last() -> None:
    node = a_node()
    secret = a_secret()
    service = a_service()
    service.spec.task_template.container_spec.secrets.add(secret_id=secret.id)
    tasks = [a_task(service, slot=i, state=pb.TASK_STATE_ASSIGNED, node_id=node.id) for i in (1, 2)]
    store = make_store(node, secret, a_secret("other"), service, *tasks)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        assert set(agent.secrets) == {secret.id}

        await change_task(store, tasks[0].id, state=pb.TASK_STATE_FAILED)
        await store.update(lambda tx: tx.delete(pb.Task, tasks[0].id))
        await agent.until(lambda: set(agent.tasks) == {tasks[1].id})
        assert set(agent.secrets) == {secret.id}
        await store.update(lambda tx: tx.delete(pb.Task, tasks[1].id))
        await agent.until(lambda: not agent.tasks)

        assert not agent.secrets
        await agent.close()


async def test_a_second_hello_of_a_node_replaces_the_first_session() -> None:
    node = a_node()
    async with leading(make_store(node)) as dispatcher:
        first = await FakeAgent(dispatcher, node.id).connect()
        second = await FakeAgent(dispatcher, node.id).connect()

        await first.until(lambda: first.error is not None)
        assert isinstance(first.error, Unavailable)
        assert second.error is None
        await first.close()
        await second.close()


async def test_heartbeats_are_answered() -> None:
    node = a_node()
    async with leading(make_store(node)) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect(heartbeat_seconds=0.01)

        await agent.until(lambda: agent.heartbeat_acks >= 2)
        await agent.close()


async def test_statuses_only_move_forward() -> None:
    node = a_node()
    service = a_service()
    task = a_task(service, state=pb.TASK_STATE_STARTING, node_id=node.id)
    store = make_store(node, service, task)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        for sequence, state in enumerate(
            (pb.TASK_STATE_PREPARING, pb.TASK_STATE_FAILED, pb.TASK_STATE_RUNNING), start=1
        ):
            agent.report(task.id, state, sequence)
            await agent.until(lambda sequence=sequence: sequence in agent.confirmations)  # type: ignore[misc]

        found = store.view.tasks.get(task.id)
        assert found is not None
        assert found.status.state == pb.TASK_STATE_FAILED
        await agent.close()


async def test_statuses_of_another_nodes_task_are_dropped() -> None:
    node, other = a_node("a"), a_node("b")
    service = a_service()
    task = a_task(service, state=pb.TASK_STATE_STARTING, node_id=other.id)
    store = make_store(node, other, service, task)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        agent.report(task.id, pb.TASK_STATE_FAILED)
        await agent.until(lambda: agent.confirmations == [1])

        found = store.view.tasks.get(task.id)
        assert found is not None
        assert found.status.state == pb.TASK_STATE_STARTING
        await agent.close()


async def test_task_given_up_before_it_ended_is_shut_down_and_no_failure() -> None:
    node = a_node()
    service = a_service()
    task = a_task(service, state=pb.TASK_STATE_RUNNING, desired=pb.TASK_STATE_SHUTDOWN, node_id=node.id)
    store = make_store(node, service, task)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        agent.report(task.id, pb.TASK_STATE_FAILED)
        await agent.until(lambda: agent.confirmations == [1])

        found = store.view.tasks.get(task.id)
        assert found is not None
        assert found.status.state == pb.TASK_STATE_SHUTDOWN
        await agent.close()


async def test_a_report_is_confirmed_only_once_it_is_committed() -> None:
    node = a_node()
    service = a_service()
    task = a_task(service, state=pb.TASK_STATE_STARTING, node_id=node.id)
    store = make_store(node, service, task)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        proposer = _Failing(store)
        store.attach(proposer)
        agent.report(task.id, pb.TASK_STATE_RUNNING)
        await agent.until(lambda: agent.confirmations == [1])

        found = store.view.tasks.get(task.id)
        assert proposer.failures_left == 0
        assert found is not None
        assert found.status.state == pb.TASK_STATE_RUNNING
        await agent.close()


async def test_a_removed_node_is_told_and_its_tasks_are_orphaned() -> None:
    node = a_node()
    service = a_service()
    task = a_task(service, node_id=node.id)
    store = make_store(node, service, task)

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        await store.update(lambda tx: tx.delete(pb.Node, node.id))
        await agent.until(lambda: agent.error is not None)
        await stored(store, lambda: bool(store.view.tasks.find("state", pb.TASK_STATE_ORPHANED)))

        assert isinstance(agent.error, NotFound)
        await agent.close()


async def test_a_hundred_tasks_are_told_in_few_messages() -> None:
    node = a_node()
    service = a_published_service()
    store = make_store(node, service)
    tasks = [a_task(service, slot=i, state=pb.TASK_STATE_ASSIGNED, node_id=node.id) for i in range(1, 101)]

    async with leading(store) as dispatcher:
        agent = await FakeAgent(dispatcher, node.id).connect()
        await store.batch([lambda tx, task=task: tx.create(task) for task in tasks])  # type: ignore[misc]
        await agent.until(lambda: len(agent.tasks) == 100)
        for sequence, task in enumerate(tasks, start=1):
            agent.report(task.id, pb.TASK_STATE_RUNNING, sequence, address="10.9.0.1")
        await agent.until(lambda: len(agent.endpoint_states(service.id)) == 100)

        assert len(agent.versions) < 30
        await agent.close()


class _Failing:
    """Refuses the first proposals."""

    def __init__(self, store: object) -> None:
        self._store = store
        self.failures_left = 2

    async def propose(self, data: bytes) -> object:
        if self.failures_left:
            self.failures_left -= 1
            raise Unavailable("no majority")
        return self._store.apply(self._store.applied_index + 1, data)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmlet.manager.dispatcher.statuses.RETRY_SECONDS", 0.01)
