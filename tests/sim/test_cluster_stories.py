"""Stories of whole clusters, with one fault each."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from swarmlet.api import pb
from tests.sim.stage import Stage, story
from tests.sim.users import a_spec


@story()
async def test_an_update_goes_on_under_a_new_leader(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 6, port=0, parallelism=2, delay_seconds=1.0))
    await stage.update(service_id, image="ok:2")
    await asyncio.sleep(2.0)

    stage.world.crash(stage.leader())
    await stage.until_updated(service_id)

    assert {task.spec.container_spec.image for task in stage.running(service_id)} == {"ok:2"}


@story(sync_seconds=0.05, delay_seconds=0.05)
async def test_updates_end_on_busy_machines(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 6, port=0, parallelism=2))
    for name in stage.world.hosts:
        stage.world.slow_down(name, 0.2)

    for number in range(2, 5):
        await stage.update(service_id, image=f"ok:{number}")
        await stage.until_updated(service_id, 120.0)


@story()
async def test_a_clock_that_goes_back_holds_up_neither_updates_nor_restarts(stage: Stage) -> None:
    stage.world.jump(stage.leader(), timedelta(hours=10))
    service_id = await stage.create(
        a_spec("web", 3, port=0, delay_seconds=1.0, monitor_seconds=2.0, restart_seconds=2.0)
    )
    await stage.update(service_id, image="flaky:2")
    await asyncio.sleep(1.0)

    stage.world.jump(stage.leader(), timedelta(hours=-10))
    await asyncio.sleep(20.0)


@story()
async def test_an_update_goes_on_under_a_leader_whose_clock_is_behind(stage: Stage) -> None:
    stage.world.jump(stage.leader(), timedelta(hours=10))
    service_id = await stage.create(a_spec("web", 4, parallelism=2, delay_seconds=1.0, monitor_seconds=5.0))
    await stage.update(service_id, image="ok:2")
    await asyncio.sleep(2.0)

    stage.world.crash(stage.leader())
    await stage.until_updated(service_id)


@story()
async def test_no_update_begins_before_its_delay_is_over_because_the_leader_changed(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 2, delay_seconds=15.0))
    await stage.update(service_id, image="ok:2")
    await asyncio.sleep(2.0)

    stage.world.crash(stage.leader())
    await asyncio.sleep(10.0)

    assert sorted(t.spec.container_spec.image for t in stage.running(service_id)) == ["ok:1", "ok:2"]
    await stage.until_updated(service_id)


@story(workers=2)
async def test_daemons_that_are_started_again_adopt_their_tasks(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 10, port=0))
    before = {task.id for task in stage.running(service_id)}

    for name in stage.world.hosts:
        stage.world.crash(name)
    await asyncio.sleep(1.0)
    for name in stage.world.hosts:
        stage.world.start(name)
    await asyncio.sleep(10.0)

    assert {task.id for task in stage.running(service_id)} == before
    assert stage.world.judge.starts == 10


@story(workers=1)
async def test_tasks_go_on_without_any_manager(stage: Stage) -> None:
    await stage.create(a_spec("web", 4, constraints=("node.role==worker",)))

    for name in stage.world.manager_names:
        stage.world.cut_off(name, [n for n in stage.world.hosts if n != name])
    await asyncio.sleep(60.0)

    assert len(stage.in_engine("w0")) == 4


@story(workers=1)
async def test_what_ended_while_there_was_no_leader_is_known_to_the_next(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 3, constraints=("node.role==worker",)))
    (first, *_) = stage.in_engine("w0")

    stage.world.crash(stage.leader())
    stage.world.hosts["w0"].engine.end_task(first, 7)
    await stage.until(lambda: any(t.status.state == pb.TASK_STATE_FAILED for t in stage.tasks(service_id)))
    await stage.until(lambda: len(stage.running(service_id)) == 3)

    (failed,) = [task for task in stage.tasks(service_id) if task.status.state == pb.TASK_STATE_FAILED]
    assert (failed.id, failed.status.container_status.exit_code) == (first, 7)


@story(workers=2)
async def test_a_status_that_the_leader_took_with_it_is_reported_again(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 3, constraints=("node.role==worker",)))
    leader = stage.leader()

    # It hears the agents and can commit nothing.
    stage.world.cut_off(leader, stage.followers())
    stage.world.hosts["w0"].engine.end_task(stage.in_engine("w0")[0])
    await asyncio.sleep(0.3)
    stage.world.crash(leader)

    await stage.until(lambda: any(t.status.state == pb.TASK_STATE_FAILED for t in stage.tasks(service_id)))


@story(workers=2)
async def test_agents_leave_a_leader_that_has_lost_the_others(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 6, port=0, image="ok:1"))
    old = stage.leader()

    stage.world.cut_off(old, stage.followers())
    await stage.until(lambda: stage.leader() != old)
    await stage.update(service_id, replicas=9)
    await stage.until(lambda: len(stage.running(service_id)) == 9, 15.0)

    assert {task.node_id for task in stage.running(service_id)} >= {"w0", "w1"}


@story(workers=2)
async def test_a_node_that_is_cut_off_is_replaced_and_stops_its_tasks_when_it_returns(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 5, port=0))
    others = [name for name in stage.world.hosts if name != "w0"]
    cut_off = stage.in_engine("w0")

    stage.world.cut_off("w0", others)
    await stage.until(lambda: len(stage.running(service_id)) == 5 and stage.tasks_on("w0") == [], 15.0)
    assert stage.in_engine("w0") == cut_off

    stage.world.reconnect("w0", others)
    await stage.until(lambda: not set(cut_off) & set(stage.in_engine("w0")), 15.0)


@story(workers=1)
async def test_a_host_that_lost_its_power_says_so_and_runs_nothing_twice(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 2, constraints=("node.role==worker",)))
    before = {task.id for task in stage.running(service_id)}

    stage.world.crash("w0", power=True)
    await asyncio.sleep(1.0)
    stage.world.start("w0")
    await stage.until(lambda: len(stage.in_engine("w0")) == 2)

    assert not before & set(stage.in_engine("w0"))


@story()
async def test_a_leader_that_is_stopped_for_a_while_is_none_when_it_goes_on(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 3, port=0))
    old = stage.leader()

    stage.world.pause(old)
    await stage.until(lambda: any(m.raft.is_leader for m in stage.world.managers() if m.address != old))
    await stage.update(service_id, image="ok:2")
    await asyncio.sleep(3.0)
    stage.world.resume(old)

    await stage.until_updated(service_id)


@story(workers=1, sync_seconds=0.2)
async def test_a_leader_that_was_stopped_for_a_while_tells_nobody_its_old_state(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 1, port=0, constraints=("node.role==worker",)))
    old, others = stage.leader(), stage.followers()
    stage.world.pause(old)
    await stage.until(lambda: any(m.raft.is_leader for m in stage.world.managers() if m.address != old))
    await stage.update(service_id, replicas=5)
    await stage.until(lambda: len(stage.in_engine("w0")) == 5)

    # The only manager that the node reaches is the one that goes on.
    stage.world.cut_off("w0", others)
    for other in others:
        stage.world.network.break_connections("w0", other)
    await stage.until(lambda: bool(stage.world.network.between("w0", old)))
    await asyncio.sleep(0.5)
    stage.world.resume(old)
    await asyncio.sleep(1.0)

    assert len(stage.in_engine("w0")) == 5


@story(workers=1)
async def test_a_task_that_hangs_while_it_starts_is_replaced_by_an_update(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 2, on_failure=pb.FAILURE_ACTION_CONTINUE))
    await stage.update(service_id, image="hang:2")
    await asyncio.sleep(20.0)
    assert {t.spec.container_spec.image for t in stage.running(service_id)} == {"ok:1"}

    await stage.update(service_id, image="ok:3")
    await stage.until_updated(service_id)

    assert {t.spec.container_spec.image for t in stage.running(service_id)} == {"ok:3"}


@story(workers=1)
async def test_start_first_runs_two_tasks_of_a_slot_at_most(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 2, port=0, image="stubborn:1", start_first=True))

    for number in range(2, 6):
        await stage.update(service_id, image=f"stubborn:{number}")
        await asyncio.sleep(1.0)

    await stage.until_updated(service_id)


@story(workers=1)
async def test_a_drained_node_is_left_and_used_again(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 8, port=0))

    await stage.set_node("w0", availability=pb.NODE_AVAILABILITY_DRAIN)
    await stage.until(lambda: not stage.in_engine("w0") and len(stage.running(service_id)) == 8)
    await stage.set_node("w0", availability=pb.NODE_AVAILABILITY_ACTIVE)
    await stage.update(service_id, replicas=12)

    await stage.until(lambda: len(stage.in_engine("w0")) >= 3)


@story(workers=1)
async def test_a_removed_service_leaves_nothing_on_nodes_that_were_away(stage: Stage) -> None:
    service_id = await stage.create(a_spec("web", 4, constraints=("node.role==worker",)))

    stage.world.crash("w0")
    await stage.remove(service_id)
    await asyncio.sleep(5.0)
    assert len(stage.in_engine("w0")) == 4

    stage.world.start("w0")
    await stage.until(lambda: stage.world.hosts["w0"].engine.task_ids() == [])
