"""Docker's health checks for runtimes that have no engine to run them.

Called by a runtime once the task's program runs. Knows intervals, retries and
states; how a probe is executed is the runtime's business (a callable).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from swarmlet.api import pb

DEFAULT_INTERVAL_SECONDS = 30.0
DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_START_INTERVAL_SECONDS = 5.0
DEFAULT_RETRIES = 3


class Health(enum.Enum):
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True)
class HealthCheck:
    """A health check with Docker's defaults filled in."""

    command: tuple[str, ...]
    interval_seconds: float = DEFAULT_INTERVAL_SECONDS
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    start_period_seconds: float = 0.0
    start_interval_seconds: float = DEFAULT_START_INTERVAL_SECONDS
    retries: int = DEFAULT_RETRIES

    @staticmethod
    def from_spec(config: pb.HealthConfig) -> HealthCheck | None:
        """None without a test of its own, or with NONE. Raises ValueError for an unknown kind of test."""
        if not config.test or config.test[0] == "NONE":
            return None
        kind, *words = config.test
        if kind == "CMD-SHELL":
            words = ["/bin/sh", "-c", *words]
        elif kind != "CMD":
            raise ValueError(f"unknown type {kind!r} of health check: use CMD, CMD-SHELL or NONE")
        if not words:
            raise ValueError(f"health check {kind} has no command")
        return HealthCheck(
            command=tuple(words),
            interval_seconds=config.interval_ns / 1e9 or DEFAULT_INTERVAL_SECONDS,
            timeout_seconds=config.timeout_ns / 1e9 or DEFAULT_TIMEOUT_SECONDS,
            start_period_seconds=config.start_period_ns / 1e9,
            start_interval_seconds=config.start_interval_ns / 1e9 or DEFAULT_START_INTERVAL_SECONDS,
            retries=config.retries or DEFAULT_RETRIES,
        )


class HealthMonitor:
    """Probes again and again while `run` is awaited; `settled()` waits for the first verdict.

    `probe` is given the timeout in seconds and returns whether the task answered well
    in time. Failures within the start period do not count until the first success.
    """

    def __init__(
        self,
        check: HealthCheck,
        probe: Callable[[float], Awaitable[bool]],
        *,
        health: Health = Health.STARTING,
    ) -> None:
        self.check = check
        self.health = health
        self._probe = probe
        self._left_starting = asyncio.Event()
        self._unhealthy = asyncio.Event()
        if health is not Health.STARTING:
            self._left_starting.set()

    async def run(self) -> None:
        """Returns once the task is unhealthy: nobody asks a task again that will be stopped."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        failing_streak = 0
        while self.health is not Health.UNHEALTHY:
            await asyncio.sleep(self._pause_seconds(loop.time() - started))
            probe_started = loop.time()
            if await self._probe(self.check.timeout_seconds):
                failing_streak = 0
                self._become(Health.HEALTHY)
                continue
            in_start_period = probe_started - started < self.check.start_period_seconds
            if self.health is Health.STARTING and in_start_period:
                continue
            failing_streak += 1
            if failing_streak >= self.check.retries:
                self._become(Health.UNHEALTHY)

    async def settled(self) -> Health:
        """Waits for the end of STARTING; HEALTHY or UNHEALTHY."""
        await self._left_starting.wait()
        return self.health

    async def unhealthy(self) -> None:
        await self._unhealthy.wait()

    def _pause_seconds(self, elapsed_seconds: float) -> float:
        if self.health is Health.STARTING and elapsed_seconds < self.check.start_period_seconds:
            return min(self.check.start_interval_seconds, self.check.interval_seconds)
        return self.check.interval_seconds

    def _become(self, health: Health) -> None:
        self.health = health
        self._left_starting.set()
        if health is Health.UNHEALTHY:
            self._unhealthy.set()
