"""The agent with a simulated runtime and a manager in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from swarmlet.agent.journal import FileJournal
from swarmlet.api import pb
from swarmlet.api.errors import NotFound, NotLeader, Unavailable
from swarmlet.network.embedded import NoProxy
from swarmlet.runtime.simulated import Behaviour, SimulatedRuntime
from tests.builders import a_secret, a_service, a_task
from tests.unit.agent.fakes import NODE_ID, PATIENCE_SECONDS, FakeManager, an_agent

RUNNING = pb.TASK_STATE_RUNNING
SHUTDOWN = pb.TASK_STATE_SHUTDOWN


def _assigned(desired: pb.TaskState.ValueType = RUNNING) -> pb.Task:
    return a_task(a_service(), state=pb.TASK_STATE_ASSIGNED, desired=desired, node_id=NODE_ID)


def _stopping(task: pb.Task) -> pb.Task:
    changed = pb.Task()
    changed.CopyFrom(task)
    changed.desired_state = SHUTDOWN
    return changed


async def test_a_task_runs_and_is_told_to_stop(tmp_path: Path) -> None:
    manager, runtime, task = FakeManager(), SimulatedRuntime("h"), _assigned()

    async with an_agent(manager, runtime, tmp_path):
        manager.assign(task, complete=True)
        status = await manager.until_state(task, RUNNING)
        assert status.message == "started"
        assert status.container_status.container_id
        assert runtime.running_task_ids() == [task.id]

        manager.assign(_stopping(task))
        status = await manager.until_state(task, SHUTDOWN)

        assert status.message == "shutdown"
        assert runtime.running_task_ids() == []
        assert manager.history[task.id] == sorted(manager.history[task.id])


async def test_a_task_that_ends_by_itself_is_complete(tmp_path: Path) -> None:
    runtime = SimulatedRuntime("h", behaviour=lambda _: Behaviour(run_seconds=0.02))
    manager, task = FakeManager(), _assigned()

    async with an_agent(manager, runtime, tmp_path):
        manager.assign(task, complete=True)

        status = await manager.until_state(task, pb.TASK_STATE_COMPLETE)

    assert status.message == "finished"


@pytest.mark.parametrize(
    ("behaviour", "state", "err", "message"),
    [
        (Behaviour(reject="No such image: x"), pb.TASK_STATE_REJECTED, "No such image: x", "preparing"),
        (Behaviour(fail_start="unhealthy"), pb.TASK_STATE_FAILED, "unhealthy", "starting"),
        (
            Behaviour(run_seconds=0.01, exit_code=3),
            pb.TASK_STATE_FAILED,
            "task: non-zero exit (3)",
            "started",
        ),
    ],
)
async def test_what_goes_wrong_is_said(
    tmp_path: Path, behaviour: Behaviour, state: pb.TaskState.ValueType, err: str, message: str
) -> None:
    manager, task = FakeManager(), _assigned()

    async with an_agent(manager, SimulatedRuntime("h", behaviour=lambda _: behaviour), tmp_path):
        manager.assign(task, complete=True)

        status = await manager.until_state(task, state)

    assert (status.err, status.message) == (err, message)
    assert status.container_status.exit_code == behaviour.exit_code


async def test_a_task_that_is_to_be_ready_is_held_there(tmp_path: Path) -> None:
    manager, runtime, task = FakeManager(), SimulatedRuntime("h"), _assigned(pb.TASK_STATE_READY)

    async with an_agent(manager, runtime, tmp_path):
        manager.assign(task, complete=True)
        await manager.until_state(task, pb.TASK_STATE_READY)
        assert runtime.running_task_ids() == []

        task.desired_state = RUNNING
        manager.assign(task)
        await manager.until_state(task, RUNNING)


async def test_a_shutdown_interrupts_a_long_preparation(tmp_path: Path) -> None:
    runtime = SimulatedRuntime("h", behaviour=lambda _: Behaviour(prepare_seconds=3600))
    manager, task = FakeManager(), _assigned()

    async with an_agent(manager, runtime, tmp_path):
        manager.assign(task, complete=True)
        await manager.until_state(task, pb.TASK_STATE_PREPARING)
        manager.assign(_stopping(task))

        await manager.until_state(task, SHUTDOWN)


async def test_a_task_to_be_stopped_is_not_started_by_an_older_wish(tmp_path: Path) -> None:
    manager, runtime, task = FakeManager(), SimulatedRuntime("h"), _assigned()

    async with an_agent(manager, runtime, tmp_path):
        manager.assign(_stopping(task), complete=True)
        manager.assign(task, complete=True)
        await manager.until_state(task, SHUTDOWN)

    assert runtime.starts == []


async def test_a_task_that_is_removed_leaves_nothing(tmp_path: Path) -> None:
    manager, runtime, task = FakeManager(), SimulatedRuntime("h"), _assigned()

    async with an_agent(manager, runtime, tmp_path):
        manager.assign(task, complete=True)
        await manager.until_state(task, RUNNING)
        manager.assign(removed_task_ids=[task.id])

        await _until_gone(runtime)

    assert FileJournal(tmp_path / "tasks").load() == []


async def test_running_tasks_are_adopted_without_any_manager(tmp_path: Path) -> None:
    manager, runtime, task = FakeManager(), SimulatedRuntime("h"), _assigned()
    async with an_agent(manager, runtime, tmp_path):
        manager.assign(task, complete=True)
        await manager.until_state(task, RUNNING)
    assert runtime.running_task_ids() == [task.id]

    nobody = FakeManager()
    nobody.error = Unavailable("no manager answers")
    async with an_agent(nobody, runtime, tmp_path):
        await nobody.until(lambda: nobody.attempts >= 3)
        assert runtime.running_task_ids() == [task.id]
        nobody.error = None

        await nobody.until_state(task, RUNNING)

    assert runtime.starts == [task.id]
    assert runtime.running_task_ids() == [task.id]


async def test_an_adopted_task_still_reports_its_end(tmp_path: Path) -> None:
    manager, runtime, task = FakeManager(), SimulatedRuntime("h"), _assigned()
    async with an_agent(manager, runtime, tmp_path):
        manager.assign(task, complete=True)
        await manager.until_state(task, RUNNING)
    runtime.end_task(task.id, 5)

    again = FakeManager()
    async with an_agent(again, runtime, tmp_path):
        status = await again.until_state(task, pb.TASK_STATE_FAILED)

    assert status.container_status.exit_code == 5


async def test_a_task_that_vanished_with_its_host_is_failed_and_not_run_again(tmp_path: Path) -> None:
    manager, runtime, task = FakeManager(), SimulatedRuntime("h"), _assigned()
    async with an_agent(manager, runtime, tmp_path):
        manager.assign(task, complete=True)
        await manager.until_state(task, RUNNING)
    runtime.lose_power()

    again = FakeManager()
    async with an_agent(again, runtime, tmp_path):
        status = await again.until_state(task, pb.TASK_STATE_FAILED)

    assert "restart" in status.err
    assert runtime.starts == [task.id]


async def test_a_task_that_the_manager_saw_running_is_not_run_again_by_a_node_that_lost_its_disk(
    tmp_path: Path,
) -> None:
    manager, runtime = FakeManager(), SimulatedRuntime("h")
    task = a_task(a_service(), state=RUNNING, node_id=NODE_ID)

    async with an_agent(manager, runtime, tmp_path):
        manager.assign(task, complete=True)
        await manager.until_state(task, pb.TASK_STATE_FAILED)

    assert runtime.starts == []


async def test_what_nobody_wants_is_removed_after_the_first_complete_set(tmp_path: Path) -> None:
    manager, runtime, orphan = FakeManager(), SimulatedRuntime("h"), _assigned()
    async with an_agent(manager, runtime, tmp_path / "old"):
        manager.assign(orphan, complete=True)
        await manager.until_state(orphan, RUNNING)

    again = FakeManager()
    async with an_agent(again, runtime, tmp_path / "new"):
        await again.until(lambda: bool(again.hellos))
        assert runtime.running_task_ids() == [orphan.id]
        again.assign(complete=True)
        await _until_gone(runtime)


async def test_statuses_are_repeated_until_they_are_confirmed(tmp_path: Path) -> None:
    manager, task = FakeManager(), _assigned()
    manager.confirms_reports = False

    async with an_agent(manager, SimulatedRuntime("h"), tmp_path):
        manager.assign(task, complete=True)
        await manager.until_state(task, RUNNING)
        manager.hang_up()
        await manager.until(lambda: len(manager.hellos) == 2)
        before = len(manager.reports)
        await manager.until(lambda: len(manager.reports) > before)

        (update,) = manager.reports[before].updates
        assert (update.task_id, update.status.state) == (task.id, RUNNING)


async def test_a_new_heartbeat_period_counts_at_once(tmp_path: Path) -> None:
    manager = FakeManager()
    manager.heartbeat_seconds = 3600.0

    async with an_agent(manager, SimulatedRuntime("h"), tmp_path):
        await manager.until(lambda: manager.heartbeats == 1)
        manager.say(pb.ManagerMessage(session=pb.SessionInfo(heartbeat_period_ns=10_000_000)))

        await manager.until(lambda: manager.heartbeats >= 4)


async def test_a_manager_that_hangs_is_left(tmp_path: Path) -> None:
    manager = FakeManager()
    manager.answers_heartbeats = False

    async with an_agent(manager, SimulatedRuntime("h"), tmp_path):
        await manager.until(lambda: len(manager.hellos) >= 2)


async def test_a_follower_that_knows_the_leader_is_left_at_once(tmp_path: Path) -> None:
    manager = FakeManager()
    manager.error = NotLeader("10.0.0.2:2377")

    async with an_agent(manager, SimulatedRuntime("h"), tmp_path):
        await manager.until(lambda: manager.attempts >= 2)


async def test_a_node_that_is_not_of_the_swarm_stops_its_agent(tmp_path: Path) -> None:
    manager = FakeManager()
    manager.error = NotFound("node is not part of this swarm")

    async with an_agent(manager, SimulatedRuntime("h"), tmp_path) as agent:
        with pytest.raises(NotFound):
            await agent.run()


async def test_a_version_is_confirmed_after_the_proxy_took_it_up(tmp_path: Path) -> None:
    manager, network = FakeManager(), _SlowProxy()

    async with an_agent(manager, SimulatedRuntime("h"), tmp_path, network):
        version = manager.assign(complete=True, services=[pb.ServiceEndpoints(service_id="s")])
        await manager.until(lambda: len(manager.hellos) == 1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await network.called.wait()
        assert manager.applied == []

        network.may_return.set()
        await manager.until(lambda: manager.applied == [version])

    assert [s.service_id for s in network.services] == ["s"]


async def test_addresses_of_a_running_task_are_reported_as_the_network_exposes_them(tmp_path: Path) -> None:
    manager, task = FakeManager(), _assigned()
    task.endpoint.ports.add(target_port=80, published_port=8080)

    async with an_agent(manager, SimulatedRuntime("h"), tmp_path, _SlowProxy()):
        manager.assign(task, complete=True)
        status = await manager.until_state(task, RUNNING)

    assert [a.address for a in status.endpoint_addresses] == ["192.0.2.1"]


async def test_logs_are_sent_to_whoever_subscribes(tmp_path: Path) -> None:
    runtime = SimulatedRuntime("h", behaviour=lambda _: Behaviour(log_lines=("one", "two")))
    manager, task = FakeManager(), _assigned()

    async with an_agent(manager, runtime, tmp_path):
        manager.assign(task, complete=True)
        await manager.until_state(task, RUNNING)
        manager.say(
            pb.ManagerMessage(
                log_subscription=pb.LogSubscription(
                    id="sub",
                    selector=pb.LogSelector(task_ids=[task.id, "unknown"]),
                    options=pb.LogOptions(stdout=True, stderr=True, tail=-1),
                )
            )
        )
        await manager.until(lambda: bool(manager.log_batches) and manager.log_batches[-1].last)

    lines = [line for batch in manager.log_batches for line in batch.lines]
    assert [line.data for line in lines] == [b"one", b"two"]
    assert {line.node_id for line in lines} == {NODE_ID}
    assert "unknown" in manager.log_batches[-1].error


async def test_nothing_secret_is_written_to_the_state_directory(tmp_path: Path) -> None:
    manager = FakeManager()
    secret = a_secret(data=b"very-hidden")
    service = a_service()
    container = service.spec.task_template.container_spec
    container.secrets.add(secret_id=secret.id)
    container.pull_auth = b"registry-password"
    task = a_task(service, state=pb.TASK_STATE_ASSIGNED, node_id=NODE_ID)

    async with an_agent(manager, SimulatedRuntime("h"), tmp_path):
        manager.assign(task, complete=True, secrets=[secret])
        await manager.until_state(task, RUNNING)

    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert task.id.encode() in written
    assert b"very-hidden" not in written
    assert b"registry-password" not in written


class _SlowProxy(NoProxy):
    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.may_return = asyncio.Event()
        self.services: list[pb.ServiceEndpoints] = []

    async def apply(self, services: Sequence[pb.ServiceEndpoints]) -> None:
        self.services = list(services)
        self.called.set()
        await self.may_return.wait()

    async def expose(
        self, task_id: str, addresses: Sequence[pb.EndpointAddress]
    ) -> Sequence[pb.EndpointAddress]:
        return [
            pb.EndpointAddress(target_port=a.target_port, address="192.0.2.1", port=a.port) for a in addresses
        ]


async def _until_gone(runtime: SimulatedRuntime) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await runtime.leftovers():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_defect_ends_a_session_and_not_the_agent(tmp_path: Path) -> None:
    manager, task = FakeManager(), _assigned()
    manager.error = RuntimeError("defect")

    async with an_agent(manager, SimulatedRuntime("h"), tmp_path):
        await manager.until(lambda: manager.attempts > 0)
        manager.error = None
        manager.assign(task, complete=True)

        await manager.until_state(task, RUNNING)
