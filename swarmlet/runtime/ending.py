"""What the task controllers share: waiting for the first of several ends, and what an exit code means."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from swarmlet.runtime.base import TaskFailed


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns when one of them has returned; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def raise_for_exit(exit_code: int | None) -> None:
    """Raises TaskFailed in Docker's words for any exit code but 0."""
    if exit_code:
        raise TaskFailed(f"task: non-zero exit ({exit_code})", exit_code)
