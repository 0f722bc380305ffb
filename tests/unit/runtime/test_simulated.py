from __future__ import annotations

import asyncio

import pytest

from swarmlet.api import pb
from swarmlet.runtime.base import Runtime, TaskFailed, TaskRejected
from swarmlet.runtime.simulated import Behaviour, SimulatedController, SimulatedRuntime
from tests.unit.runtime.builders import RESOURCES, make_task, no_progress


def runtime_with(behaviour: Behaviour) -> SimulatedRuntime:
    return SimulatedRuntime("host1", start_seconds=0.0, behaviour=lambda _task: behaviour)


def controller_of(runtime: SimulatedRuntime, task: pb.Task) -> SimulatedController:
    return runtime.controller(task, RESOURCES, no_progress)


async def test_it_is_a_runtime() -> None:
    runtime: Runtime = SimulatedRuntime("host1", cpus=2, memory_bytes=1 << 30)

    description = await runtime.describe()

    assert description.hostname == "host1"
    assert description.resources.nano_cpus == 2 * 10**9
    assert description.engine.runtime == "simulated"


async def test_task_runs_until_it_ends_by_itself() -> None:
    runtime = runtime_with(Behaviour(run_seconds=0.01))
    controller = controller_of(runtime, make_task())

    await controller.prepare()
    await controller.start()
    assert runtime.running_task_ids() == ["task1"]
    await controller.wait()

    assert runtime.running_task_ids() == []


async def test_non_zero_exit_code_fails_the_task() -> None:
    controller = controller_of(runtime_with(Behaviour(run_seconds=0.0, exit_code=3)), make_task())
    await controller.prepare()
    await controller.start()

    with pytest.raises(TaskFailed, match=r"task: non-zero exit \(3\)") as failure:
        await controller.wait()

    assert failure.value.exit_code == 3


async def test_prepare_rejects_when_told_so() -> None:
    runtime = runtime_with(Behaviour(reject="No such image: demo:1"))

    with pytest.raises(TaskRejected, match="No such image"):
        await controller_of(runtime, make_task()).prepare()

    assert await runtime.leftovers() == []


async def test_start_fails_when_told_so() -> None:
    controller = controller_of(runtime_with(Behaviour(fail_start="no luck")), make_task())
    await controller.prepare()

    with pytest.raises(TaskFailed, match="no luck"):
        await controller.start()


async def test_second_controller_adopts_the_running_task() -> None:
    runtime = runtime_with(Behaviour())
    first = controller_of(runtime, make_task())
    await first.prepare()
    await first.start()

    second = controller_of(runtime, make_task())
    await second.prepare()
    await second.start()

    assert runtime.starts == ["task1"]
    assert second.container_status() == first.container_status()


async def test_shutdown_ends_the_wait_and_remove_leaves_nothing() -> None:
    runtime = runtime_with(Behaviour(stop_seconds=0.01))
    controller = controller_of(runtime, make_task())
    await controller.prepare()
    await controller.start()
    waiting = asyncio.create_task(controller.wait())

    await controller.shutdown()
    await waiting
    await controller.remove()

    assert await runtime.leftovers() == []
    assert controller.container_status() is None


async def test_task_that_ignores_the_stop_signal_is_killed_after_its_grace_period() -> None:
    controller = controller_of(
        runtime_with(Behaviour(stop_seconds=60)), make_task(stop_grace_period_ns=10_000_000)
    )
    await controller.prepare()
    await controller.start()

    await controller.shutdown()

    status = controller.container_status()
    assert status is not None
    assert status.exit_code == 137


async def test_tasks_are_gone_after_a_power_loss() -> None:
    runtime = runtime_with(Behaviour())
    controller = controller_of(runtime, make_task())
    await controller.prepare()
    await controller.start()
    waiting = asyncio.create_task(controller.wait())
    await asyncio.sleep(0)

    runtime.lose_power()

    with pytest.raises(TaskFailed):
        await waiting
    assert await runtime.leftovers() == []
