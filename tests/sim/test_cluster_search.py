"""A few random histories of whole clusters; `python -m tests.sim --kind cluster` searches more of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.clock import run_virtually
from tests.sim.clusterruns import ClusterRun

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", ["0-2", "16-18"])
def test_no_history_violates_what_must_hold(seeds: str) -> None:
    # A process of its own, with the hash seed with which the printed line replays it.
    search = subprocess.run(
        [sys.executable, "-m", "tests.sim", "--kind", "cluster", "--seeds", seeds],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert search.returncode == 0, search.stdout + search.stderr


def test_a_seed_is_one_history() -> None:
    runs = [run_virtually(lambda: ClusterRun(7, seconds=5.0).go()) for _ in range(2)]

    assert runs[0].history == runs[1].history
