"""Requests that fail while a service of six replicas is updated, two at a time, under constant load.

First a series of updates in peace, then one in whose middle the leader loses power. The
load goes to the published port of every node; in the second part the node that will be
killed is left out just before, and its tasks' own requests are what a power failure
costs: the requests of all other clients must not fail.
"""

from __future__ import annotations

import argparse
import asyncio
from time import monotonic

from benchmarks.harness import Board, Report, change, create, fresh_lab, run, service_spec, web_urls
from swarmlet.api import pb
from swarmlet.lab import example, processes
from swarmlet.lab.cluster import Lab
from swarmlet.lab.load import Load, Outcome

REPLICAS = 6
PARALLELISM = 2
UPDATE_SECONDS_MAX = 120.0


class Rolling:
    def __init__(self, lab: Lab, board: Board, service_id: str) -> None:
        self._lab, self._board, self._service_id = lab, board, service_id
        self._version = 1

    async def begin(self) -> float:
        """Starts an update to the next version; returns when, by the monotonic clock."""
        self._version += 1
        version = f"VERSION={self._version}"

        def edit(spec: pb.ServiceSpec) -> None:
            spec.task_template.container_spec.env[:] = [version]

        began = monotonic()
        await change(self._lab, self._service_id, edit)
        return began

    async def end(self) -> float:
        """Waits until all replicas are of the new version and the update is said to be completed."""
        return await self._board.until(self._is_done, timeout=UPDATE_SECONDS_MAX)

    async def half(self) -> float:
        return await self._board.until(lambda: len(self._new()) >= REPLICAS // 2, timeout=UPDATE_SECONDS_MAX)

    def _new(self) -> list[pb.Task]:
        wanted = [f"VERSION={self._version}"]
        tasks = self._board.running(self._service_id)
        return [task for task in tasks if list(task.spec.container_spec.env) == wanted]

    def _is_done(self) -> bool:
        service = self._board.services.get(self._service_id)
        completed = service is not None and service.update_status.state == pb.UPDATE_STATE_COMPLETED
        return completed and len(self._new()) == REPLICAS


async def measure(options: argparse.Namespace, report: Report) -> None:
    async with fresh_lab() as lab, Board(lab) as board:
        command = await asyncio.to_thread(example.prepare, lab.layout.runtime, lab.layout.directory)
        spec = service_spec(
            "web",
            command,
            replicas=REPLICAS,
            ports=[(example.PUBLISHED_PORT, example.TARGET_PORT)],
            parallelism=PARALLELISM,
        )
        spec.task_template.container_spec.env.append("VERSION=1")
        service_id = await create(lab, spec)
        await board.until(lambda: len(board.running(service_id)) == REPLICAS)
        rolling = Rolling(lab, board, service_id)
        seconds = []
        async with Load(web_urls(lab), rate=options.rate, keep_alive=options.keep_alive) as load:
            for _ in range(options.updates):
                began = await rolling.begin()
                seconds.append(await rolling.end() - began)
        report.spread(f"update of {REPLICAS}, {PARALLELISM} at a time, 1 s monitor", seconds)
        _tell(report, "in peace", load.outcome, options.rate)
        if options.leader_kills:
            outcome, seconds = await _with_kills(lab, board, rolling, options)
            report.spread("update with the leader killed in its middle", seconds)
            _tell(report, "leader killed", outcome, options.rate)


async def _with_kills(
    lab: Lab, board: Board, rolling: Rolling, options: argparse.Namespace
) -> tuple[Outcome, list[float]]:
    seconds = []
    names = [node.name for node in lab.layout.nodes]
    async with Load(web_urls(lab), rate=options.rate, keep_alive=options.keep_alive) as load:
        for _ in range(options.leader_kills):
            leader = await lab.leader()
            await board.listen_without(leader)
            began = await rolling.begin()
            await rolling.half()
            url = web_urls(lab)[names.index(leader)]
            load.leave(url)
            if options.daemon_only:
                daemon = lab.daemon_pids(leader)
                processes.kill_all(lambda daemon=daemon: frozenset(filter(processes.state, daemon)))  # type: ignore[misc]
            else:
                await lab.kill(leader)
            seconds.append(await rolling.end() - began)
            await lab.start(leader)
            await lab.wait_ready(names)
            load.enter(url)
    return load.outcome, seconds


def _tell(report: Report, when: str, outcome: Outcome, rate: float) -> None:
    report.figure(f"requests at {rate:g}/s, {when}", outcome.total, at_least=1)
    report.figure(f"failed, {when}", outcome.failed, at_most=0)
    report.figure(f"latency p99, {when}", outcome.latency(0.99), unit="s")
    for example_of_failure in outcome.examples:
        report.rows.append(("  failed request", example_of_failure, "", ""))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rolling", description=__doc__)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--leader-kills", type=int, default=1, help="updates in whose middle the leader dies")
    parser.add_argument("--daemon-only", action="store_true", help="the leader's tasks outlive it")
    parser.add_argument("--rate", type=float, default=210.0, help="requests per second over all nodes")
    parser.add_argument("--keep-alive", action="store_true")
    return run("rolling", measure, parser)


if __name__ == "__main__":
    raise SystemExit(main())
