"""Searches seeds for violations: python -m tests.sim --seeds 0-999

Prints a line per violating seed with the command that replays it, then totals.
"""

from __future__ import annotations

import argparse
import logging
import time

import structlog

from tests.sim.clock import run_virtually
from tests.sim.faults import random_run
from tests.sim.raftworld import World


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-99", help="FIRST-LAST")
    first, _, last = parser.parse_args().seeds.partition("-")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    began = time.monotonic()
    seeds = range(int(first), int(last or first) + 1)
    acknowledged = bad = 0
    for seed in seeds:
        world = run_virtually(lambda seed=seed: random_run(seed))  # type: ignore[misc]
        acknowledged += len(world.acknowledged)
        if world.violations:
            bad += 1
            report(seed, world)
    seconds = time.monotonic() - began
    print(f"{len(seeds)} seeds, {bad} with violations, {acknowledged} acknowledged writes, {seconds:.0f} s")  # noqa: T201
    return 1 if bad else 0


def report(seed: int, world: World) -> None:
    print(f"seed {seed}: {'; '.join(world.violations[:3])}")  # noqa: T201
    print(f"  replay: python -m tests.sim --seeds {seed}")  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
