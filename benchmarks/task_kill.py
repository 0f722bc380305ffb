"""How soon a task that is killed is replaced (restart delay 0): `kill -9`, and `docker rm -f`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from time import monotonic

from benchmarks.harness import Board, Report, any_engine, create, fresh_lab, run, service_spec
from swarmlet.api import pb
from swarmlet.lab import containers, example

REPLICAS = 3


async def measure(options: argparse.Namespace, report: Report) -> None:
    seconds = await _replacements("process", options.rounds)
    report.spread("kill -9 of a task: replacement running", seconds, p50=1.5, worst=1.5)
    if options.process_only:
        return
    with any_engine() as missing:
        if missing:
            report.rows.append(("docker rm -f of a task", "not measured", missing, ""))
            return
        seconds = await _replacements("docker", options.rounds)
        report.spread("docker rm -f of a task: replacement running", seconds, p50=1.5, worst=1.5)


async def _replacements(runtime: str, rounds: int) -> list[float]:
    seconds = []
    async with fresh_lab(runtime=runtime) as lab, Board(lab) as board:
        command = await asyncio.to_thread(example.prepare, runtime, lab.layout.directory)
        service_id = await create(lab, service_spec("web", command, replicas=REPLICAS))
        await board.until(lambda: len(board.running(service_id)) == REPLICAS)
        for _ in range(rounds):
            before = {task.id: task for task in board.running(service_id)}
            victim = min(before.values(), key=lambda task: task.slot)

            def is_replaced(old: frozenset[str] = frozenset(before)) -> bool:
                running = {task.id for task in board.running(service_id)}
                return len(running) == REPLICAS and bool(running - old)

            began = monotonic()
            await asyncio.to_thread(_kill, runtime, victim)
            seconds.append(await board.until(is_replaced) - began)
    return seconds


def _kill(runtime: str, task: pb.Task) -> None:
    status = task.status.container_status
    if runtime == "process":
        os.kill(status.pid, signal.SIGKILL)
        return
    with containers.engine() as client:
        client.containers.get(status.container_id).remove(force=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.task_kill", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how often a task is killed, per runtime")
    parser.add_argument(
        "--process-only", action="store_true", help="leave out the engine even if there is one"
    )
    return run("task_kill", measure, parser)


if __name__ == "__main__":
    raise SystemExit(main())
