"""What the agent has to say until a manager has committed it."""

from __future__ import annotations

import asyncio

from swarmlet.agent.reporter import Reporter
from swarmlet.api import pb

RUNNING = pb.TaskStatus(state=pb.TASK_STATE_RUNNING)


async def test_what_is_not_confirmed_is_said_again_in_the_next_session() -> None:
    reporter = Reporter()
    reporter.report("task", RUNNING)
    await reporter.next()

    reporter.restart()

    assert (await reporter.next()).updates[0].task_id == "task"


async def test_a_status_that_is_asked_for_again_while_its_confirmation_is_on_its_way_does_no_harm() -> None:
    reporter = Reporter()
    reporter.report("task", RUNNING)
    sequence = (await reporter.next()).sequence

    reporter.report("task", RUNNING)
    reporter.confirmed(sequence)
    reporter.report("other", RUNNING)
    report = await asyncio.wait_for(reporter.next(), 10)

    assert [update.task_id for update in report.updates] == ["other"]
