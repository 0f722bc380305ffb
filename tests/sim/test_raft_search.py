"""Random schedules of faults: a fixed set of seeds, a few fresh ones, and proof that violations are found."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import cast

import pytest
import structlog

from tests.sim import naive
from tests.sim.clock import run_virtually
from tests.sim.faults import random_run, weak_power

pytestmark = pytest.mark.timeout(600)

SEEDS = range(60)
FRESH_SEEDS = 4
SEARCHED_SEEDS_MAX = 150


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Faults by the hundred are the point here; a log line for each would be the output."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


def violations(seed: int) -> list[str]:
    return run_virtually(lambda: random_run(seed)).violations


def violations_with_weak_power(seed: int) -> list[str]:
    return run_virtually(lambda: random_run(seed, size=3, tune=weak_power)).violations


def replay(seed: int, found: list[str], kind: str = "raft") -> str:
    return f"{'; '.join(found[:3])}\n  replay: python -m tests.sim --kind {kind} --seeds {seed}"


@pytest.mark.parametrize("first", range(SEEDS.start, SEEDS.stop, 10))
def test_known_schedules_violate_nothing(first: int) -> None:
    for seed in range(first, first + 10):
        found = violations(seed)

        assert not found, replay(seed, found)


def test_nothing_is_violated_when_power_fails_in_the_middle_of_writing() -> None:
    for seed in range(20):
        found = violations_with_weak_power(seed)

        assert not found, replay(seed, found, "weak-power")


def test_fresh_schedules_violate_nothing() -> None:
    for _ in range(FRESH_SEEDS):
        seed = secrets.randbelow(10**9)
        found = violations(seed)

        assert not found, replay(seed, found)


def test_a_schedule_is_the_same_every_time() -> None:
    first, second = (run_virtually(lambda: random_run(7)) for _ in range(2))

    assert first.acknowledged == second.acknowledged
    assert first.leaders == second.leaders


@pytest.mark.parametrize(
    ("without", "search"),
    [
        (naive.promises_sent_before_the_sync, violations_with_weak_power),
        (naive.votes_not_on_disk, violations_with_weak_power),
        (naive.callers_told_that_it_was_not_done, violations),
        (naive.commits_run_ahead, violations),
        (naive.reads_on_trust, violations),
    ],
    ids=lambda f: str(f.__name__),
)
def test_the_search_finds_what_a_missing_correction_does(
    without: Callable[[], object], search: Callable[[int], list[str]]
) -> None:
    with cast(AbstractContextManager[None], without()):
        assert any(search(seed) for seed in range(SEARCHED_SEEDS_MAX))
