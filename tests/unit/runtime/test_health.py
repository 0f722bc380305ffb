from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from swarmlet.api import pb
from swarmlet.runtime.health import Health, HealthCheck, HealthMonitor

FAST = HealthCheck(command=("probe",), interval_seconds=0.001, retries=3)


def answers(*results: bool) -> tuple[list[float], Callable[[float], Awaitable[bool]]]:
    """A probe that gives these results, then hangs; and the timeouts it was called with."""
    timeouts: list[float] = []

    async def probe(timeout_seconds: float) -> bool:
        timeouts.append(timeout_seconds)
        if len(timeouts) > len(results):
            await asyncio.Event().wait()
        return results[len(timeouts) - 1]

    return timeouts, probe


def test_dockers_defaults_are_filled_in() -> None:
    check = HealthCheck.from_spec(pb.HealthConfig(test=["CMD", "true"]))

    assert check == HealthCheck(("true",), 30.0, 30.0, 0.0, 5.0, 3)


def test_shell_form_runs_in_a_shell() -> None:
    check = HealthCheck.from_spec(pb.HealthConfig(test=["CMD-SHELL", "a || b"], interval_ns=10**9))

    assert check is not None
    assert check.command == ("/bin/sh", "-c", "a || b")
    assert check.interval_seconds == 1.0


@pytest.mark.parametrize("test", [[], ["NONE"]])
def test_no_check_when_there_is_none_or_it_is_disabled(test: list[str]) -> None:
    assert HealthCheck.from_spec(pb.HealthConfig(test=test)) is None


@pytest.mark.parametrize("test", [["RUN", "x"], ["CMD"]])
def test_malformed_check_is_refused(test: list[str]) -> None:
    with pytest.raises(ValueError, match="health check"):
        HealthCheck.from_spec(pb.HealthConfig(test=test))


async def test_first_success_makes_healthy() -> None:
    timeouts, probe = answers(False, True)
    monitor = HealthMonitor(FAST, probe)
    running = asyncio.create_task(monitor.run())

    assert await monitor.settled() is Health.HEALTHY

    assert timeouts[0] == 30.0
    running.cancel()


async def test_as_many_failures_in_a_row_as_retries_make_unhealthy() -> None:
    timeouts, probe = answers(True, False, False, True, False, False, False)
    monitor = HealthMonitor(FAST, probe)

    await monitor.run()

    assert monitor.health is Health.UNHEALTHY
    assert len(timeouts) == 7
    await monitor.unhealthy()


async def test_failures_in_the_start_period_do_not_count() -> None:
    check = HealthCheck(
        ("probe",), interval_seconds=0.001, start_interval_seconds=0.001, start_period_seconds=60, retries=1
    )
    _, probe = answers(False, False, False, True, False)
    monitor = HealthMonitor(check, probe)
    running = asyncio.create_task(monitor.run())

    assert await monitor.settled() is Health.HEALTHY

    await running
    assert monitor.health is Health.UNHEALTHY
