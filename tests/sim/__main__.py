"""Searches seeds for violations: python -m tests.sim --seeds 0-999

With `--kind raft` (the default) each seed is a schedule of raft alone, with `--kind
weak-power` one in which power fails while something is being written, with `--kind
cluster` one of whole clusters. Prints a line per violating seed with the command that
replays it, then totals.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from tests.sim.clock import run_virtually
from tests.sim.clusterruns import cluster_run
from tests.sim.faults import random_run, weak_power

HASH_SEED = "0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=list(KINDS), default="raft")
    parser.add_argument("--seeds", default="0-99", help="FIRST-LAST")
    parser.add_argument("--history", metavar="FILE", help="what happened in the last seed, of --kind cluster")
    options = parser.parse_args()
    repeat_the_same_with_any_hash_seed()
    first, _, last = options.seeds.partition("-")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    began = time.monotonic()
    seeds = range(int(first), int(last or first) + 1)
    acknowledged = bad = 0
    for seed in seeds:
        writes, violations = KINDS[options.kind](seed, options.history)
        acknowledged += writes
        if violations:
            bad += 1
            report(options.kind, seed, violations)
    seconds = time.monotonic() - began
    print(f"{len(seeds)} seeds, {bad} with violations, {acknowledged} acknowledged writes, {seconds:.0f} s")  # noqa: T201
    return 1 if bad else 0


def run_raft(seed: int, _: str | None) -> tuple[int, Sequence[str]]:
    """Returns how many writes were acknowledged, and what was violated."""
    world = run_virtually(lambda: random_run(seed))
    return len(world.acknowledged), world.violations


def run_raft_with_weak_power(seed: int, _: str | None) -> tuple[int, Sequence[str]]:
    world = run_virtually(lambda: random_run(seed, size=3, tune=weak_power))
    return len(world.acknowledged), world.violations


def run_cluster(seed: int, history: str | None) -> tuple[int, Sequence[str]]:
    run = run_virtually(lambda: cluster_run(seed))
    if history is not None:
        Path(history).write_text("\n".join(run.history) + "\n")
    return len(run.promises.done), run.violations


KINDS: dict[str, Callable[[int, str | None], tuple[int, Sequence[str]]]] = {
    "raft": run_raft,
    "weak-power": run_raft_with_weak_power,
    "cluster": run_cluster,
}


def report(kind: str, seed: int, violations: Sequence[str]) -> None:
    print(f"seed {seed}: {'; '.join(violations[:3])}")  # noqa: T201
    print(f"  replay: python -m tests.sim --kind {kind} --seeds {seed}")  # noqa: T201


def repeat_the_same_with_any_hash_seed() -> None:
    """Starts this program again with a fixed one: the order in sets of names is part of a schedule."""
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        environment = {**os.environ, "PYTHONHASHSEED": HASH_SEED}
        os.execve(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]], environment)


if __name__ == "__main__":
    raise SystemExit(main())
