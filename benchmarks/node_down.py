"""How soon a node that lost power is seen as Down, and its tasks run elsewhere (restart delay 0)."""

from __future__ import annotations

import argparse
import asyncio
from time import monotonic

from benchmarks.harness import Board, Report, create, fresh_lab, run, service_spec
from swarmlet.api import pb
from swarmlet.lab import example

REPLICAS = 6


async def measure(options: argparse.Namespace, report: Report) -> None:
    downs: list[float] = []
    backs: list[float] = []
    async with fresh_lab() as lab, Board(lab) as board:
        command = await asyncio.to_thread(example.prepare, lab.layout.runtime, lab.layout.directory)
        service_id = await create(lab, service_spec("web", command, replicas=REPLICAS))
        await board.until(lambda: len(board.running(service_id)) == REPLICAS)
        for _ in range(options.rounds):
            leader = await lab.leader()
            ids = {node.name: node.node_id for node in lab.layout.nodes if node.name != leader}
            held = {name: sum(t.node_id == ids[name] for t in board.running(service_id)) for name in ids}
            victim = max(held, key=lambda name: held[name])
            if not held[victim]:
                raise AssertionError("no follower runs a task: nothing to measure")
            await board.listen_without(victim)
            dead = ids[victim]

            def is_down(node_id: str = dead) -> bool:
                return node_id in board.nodes and board.nodes[node_id].status.state == pb.NODE_STATE_DOWN

            def is_back(node_id: str = dead) -> bool:
                return sum(task.node_id != node_id for task in board.running(service_id)) >= REPLICAS

            began = monotonic()
            await lab.kill(victim)
            down = asyncio.create_task(board.until(is_down))
            backs.append(await board.until(is_back) - began)
            downs.append(await down - began)
            await lab.start(victim)
            await lab.wait_ready(ids)
    report.spread("node killed: seen as Down", downs, p50=4.0)
    report.spread("node killed: its tasks running elsewhere", backs, p50=6.0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.node_down", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how often a node is killed")
    return run("node_down", measure, parser)


if __name__ == "__main__":
    raise SystemExit(main())
