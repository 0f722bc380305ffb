"""Which runtime this node uses."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import structlog

from swarmlet.api.errors import FailedPrecondition, InvalidArgument
from swarmlet.node.config import DaemonConfig
from swarmlet.runtime.base import Runtime
from swarmlet.runtime.process import ProcessRuntime

LAB_MARKERS = ("SWARMLET_LAB", "SWARMLET_LAB_NODE")
"""Environment by which a lab finds every process of a node."""

log = structlog.get_logger(__name__)


async def choose_runtime(
    config: DaemonConfig,
    *,
    owner: str,
    hostname: str,
    directory: Path,
    now: Callable[[], datetime],
) -> Runtime:
    """The runtime that was asked for; "auto" is docker where an engine answers, else process.

    Raises InvalidArgument for an unknown name and FailedPrecondition when docker was
    asked for and no engine answers.
    """
    if config.runtime not in ("auto", "docker", "process"):
        raise InvalidArgument(f"unknown runtime {config.runtime!r}: choose auto, docker or process")
    if config.runtime != "process":
        # Only here: the engine's client costs a process without an engine 15 MiB.
        from swarmlet.runtime.docker import DockerRuntime, engine_answers

        trouble = await engine_answers(config.docker_host)
        if trouble is None:
            return DockerRuntime(config.docker_host, owner=owner, hostname=hostname, now=now)
        if config.runtime == "docker":
            raise FailedPrecondition(
                f"no Docker Engine answers at {config.docker_host or 'the default socket'}: {trouble}; "
                "start it, name another with --docker-host, or use --runtime process"
            )
        log.info("no Docker Engine answers; tasks run as processes", reason=trouble)
    markers = {name: os.environ[name] for name in LAB_MARKERS if name in os.environ}
    return ProcessRuntime(directory, owner=owner, hostname=hostname, environment=markers, now=now)
