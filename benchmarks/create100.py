"""How long a service of 100 replicas takes until all run, and what the managers' memory is then."""

from __future__ import annotations

import argparse
from time import monotonic

import psutil

from benchmarks.harness import Board, Report, create, fresh_lab, remove, run, service_spec

MEBIBYTE = 1 << 20


async def measure(options: argparse.Namespace, report: Report) -> None:
    seconds: list[float] = []
    memory: dict[str, float] = {}
    async with fresh_lab() as lab, Board(lab) as board:
        for number in range(options.rounds):
            spec = service_spec(f"sleepers{number}", ["none", "sleep", "3600"], replicas=options.replicas)
            began = monotonic()
            service_id = await create(lab, spec)
            ended = await board.until(lambda: len(board.running(service_id)) >= options.replicas)  # noqa: B023
            seconds.append(ended - began)
            for node in lab.layout.managers:
                used = sum(psutil.Process(pid).memory_info().rss for pid in lab.daemon_pids(node.name))
                memory[node.name] = max(memory.get(node.name, 0.0), used / MEBIBYTE)
            await remove(lab, service_id)
            await board.until(lambda: not any(t.service_id == service_id for t in board.tasks.values()))  # noqa: B023
    report.spread(f"{options.replicas} replicas running", seconds, p50=10.0, worst=10.0)
    for name, most in memory.items():
        report.figure(f"resident memory of {name}", round(most, 1), unit="MiB", at_most=150.0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.create100", description=__doc__)
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    return run("create100", measure, parser)


if __name__ == "__main__":
    raise SystemExit(main())
