"""Known ways to lose or invent writes, as schedules: none works, and each would without its correction.

S1 to S13 are defects of PySyncObj 0.3.17 that were found by search; the others are what
a plain reading of Raft leaves open.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import cast
from unittest import mock

import pytest

from swarmlet.api import pb
from swarmlet.raft import leader
from swarmlet.raft.engine import LEADER, RaftSettings
from tests.sim import naive
from tests.sim.clock import run_virtually
from tests.sim.raftworld import World
from tests.sim.scripted import Group, scripted
from tests.sim.verdict import check, settle

Scenario = Callable[[], list[str]]
ADD, REMOVE = pb.MembershipChange.ADD, pb.MembershipChange.REMOVE


def s1_a_late_ack_makes_the_leader_send_again_and_the_follower_drop_what_it_confirmed() -> list[str]:
    with scripted("abc") as group, mock.patch.object(leader, "APPEND_ENTRIES_MAX", 2):
        group.elect("a", "bc")
        group.talk("abc")
        group.lose()
        for number in range(8):
            group.propose("a", b"%d" % number)
        group.players["a"].round()
        group.deliver("a", "b")
        group.deliver("b", "a", 1)
        group.pass_time(0.2)
        group.players["a"].round()
        group.deliver("b", "a")
        assert all(told.acknowledged for told in group.told)

        group.deliver("a", "b", 1)
        group.crash("a")
        group.elect("b", "c")
        group.talk("bc")
        return group.violations()


def s2_an_ack_of_a_former_term_counts_for_other_entries() -> list[str]:
    with scripted("abcde") as group:
        group.elect("a", "bcde")
        group.talk("abcde")
        group.lose()
        for number in range(5):
            group.propose("a", b"old %d" % number)
        group.players["a"].round()
        group.deliver("a", "b")
        group.lose(("b", "a"))

        group.elect("c", "de")
        group.deliver("c", "a")
        group.lose(("b", "a"))
        group.elect("a", "de")
        group.lose(("b", "a"))
        for number in range(3):
            group.propose("a", b"new %d" % number)
        group.players["a"].round()
        group.deliver("a", "d")
        group.deliver("d", "a")
        group.deliver("b", "a")

        group.crash("a")
        group.crash("d")
        group.elect("e", "bc")
        group.talk("bce")
        return group.violations()


def s3_a_commit_index_covers_entries_that_were_never_compared() -> list[str]:
    with scripted("abc") as group:
        group.elect("a", "bc")
        group.talk("abc")
        common = group.core("a").last_index
        common_term = group.core("a").term
        for number in range(3):
            group.propose("a", b"uncommitted %d" % number)
        group.players["a"].round()
        group.lose()
        group.elect("b", "c")
        for number in range(3):
            group.propose("b", b"%d" % number)
        group.talk("bc")
        group.lose()

        append = pb.AppendEntries(
            prev_index=common, prev_term=common_term, commit_index=group.core("b").commit_index
        )
        message = pb.RaftMessage(term=group.core("b").term, append_entries=append)
        group.receive("b", "a", message.SerializeToString())
        group.players["a"].round()
        return group.violations()


def s4_a_conflicting_tail_is_never_repaired() -> list[str]:
    with scripted("abc") as group, mock.patch.object(leader, "APPEND_ENTRIES_MAX", 2):
        group.elect("a", "bc")
        group.talk("abc")
        for number in range(6):
            group.propose("a", b"uncommitted %d" % number)
        group.players["a"].round()
        group.lose()
        group.elect("b", "c")
        group.propose("b", b"1")
        group.talk("bc")
        group.lose()

        group.talk("abc", rounds=40)
        is_repaired = group.core("a").applied_index == group.core("b").applied_index
        return group.violations() + ([] if is_repaired else ["the follower never catches up"])


def s5_a_leader_that_is_alone_removes_everybody_else() -> list[str]:
    with scripted("abcde") as group:
        group.elect("a", "bcde")
        group.talk("abcde")
        for other in "bcde":
            group.change("a", REMOVE, other)
        group.propose("a", b"alone")
        for _ in range(3):
            group.players["a"].round()
        group.lose()

        group.elect("b", "cde")
        group.propose("b", b"the others")
        group.talk("bcde")
        return group.violations()


def s6_a_caller_is_never_answered() -> list[str]:
    with scripted("abc") as group:
        group.elect("a", "bc")
        group.talk("abc")
        told = group.propose("a", b"1")
        group.players["a"].round()
        group.lose()

        group.elect("b", "c")
        for number in range(3):
            group.propose("b", b"other %d" % number)
        group.talk("abc")
        return group.violations() + ([] if told.times == 1 else ["a caller waits for ever"])


def s6_a_caller_is_told_that_it_was_not_done_and_it_is() -> list[str]:
    with scripted("abc") as group:
        group.elect("a", "bc")
        group.talk("abc")
        group.propose("a", b"1")
        group.players["a"].round()
        group.deliver("a", "b")
        group.lose()

        group.elect("b", "c")
        group.talk("abc")
        return group.violations()


def s7_an_entry_that_fails_stops_every_manager() -> list[str]:
    with scripted("abc") as group:
        group.elect("a", "bc")
        boom, told = group.propose("a", b"boom"), group.propose("a", b"1")
        try:
            group.talk("abc")
        except KeyError:
            return ["the state machine's exception stopped a manager"]
        assert isinstance(boom.result, KeyError)
        return group.violations() + ([] if told.acknowledged else ["nothing is applied any more"])


def s8_a_snapshot_with_a_part_missing_is_taken_up() -> list[str]:
    with scripted("abc", settings=RaftSettings(snapshot_chunk_bytes=48)) as group:
        group.elect("a", "bc")
        group.talk("abc")
        for number in range(40):
            group.propose("a", b"operation %d" % number)
        group.talk("ab")
        group.players["a"].fold()
        group.lose()
        group.core("a").peer_connected("c")
        has_lost_one = False
        for _ in range(80):
            group.pass_time(0.02)
            group.players["a"].round()
            parts = [pb.RaftMessage.FromString(m) for m in group.posted["a", "c"]]
            if not has_lost_one and any(m.snapshot_chunk.offset > 100 for m in parts):
                # A connection that broke and was made again between two looks.
                group.posted["a", "c"].clear()
                group.core("a")._transfers["c"].acknowledged += 48
                has_lost_one = True
            group.deliver("a", "c")
            group.deliver("c", "a")
        assert has_lost_one
        is_there = group.core("c").applied_index >= group.core("a")._snapshot_index
        return group.violations() + ([] if is_there else ["the snapshot never arrives"])


def s9_a_vote_that_comes_twice_counts_twice() -> list[str]:
    with scripted("abcde") as group:
        group.pass_time(5)
        group.core("b")._postpone_election()
        group.core("a")._SyncObj__raftElectionDeadline = group.now
        group.players["a"].round()
        for _ in range(2):
            group.deliver("a", "b")
            for reply in list(group.posted["b", "a"]):
                group.post("b", "a", reply)
                group.post("b", "a", reply)
            group.deliver("b", "a")
        return ["two of five votes made a leader"] if group.core("a").state == LEADER else []


def s13_a_caller_gets_the_answer_of_another() -> list[str]:
    with scripted("abc") as group:
        group.elect("a", "bc")
        group.talk("abc")
        group.propose("a", b"mine")
        group.propose("a", b"mine too")
        group.players["a"].round()
        group.lose()

        group.elect("b", "c")
        for number in range(3):
            group.propose("b", b"other %d" % number)
        group.talk("abc")
        return group.violations()


def figure_8_an_entry_of_a_former_term_is_committed_by_counting() -> list[str]:
    with scripted("abcde") as group, mock.patch.object(leader, "APPEND_ENTRIES_MAX", 1):
        group.elect("a", "bcde")
        group.talk("abcde")
        group.lose()
        group.propose("a", b"old")
        group.players["a"].round()
        group.deliver("a", "b")
        group.crash("a")

        group.elect("e", "cd", until_committed=False)
        group.propose("e", b"new")
        group.players["e"].round()
        group.crash("e")

        group.start("a")
        group.elect("a", "bc", until_committed=False)
        group.players["a"].round()
        group.deliver("a", "b")
        group.deliver("b", "a")
        # `c` gets the old entry, and nothing of a's own term.
        while group.players["c"].log() != [b"old"]:
            group.deliver("a", "c", 1)
            group.deliver("c", "a")
        group.crash("a")

        group.start("e")
        group.elect("e", "cd")
        group.talk("cde")
        return group.violations()


def a_manager_that_hears_nobody_deposes_the_leader() -> list[str]:
    with scripted("abc") as group:
        group.elect("a", "bc")
        group.talk("abc")
        term = group.core("a").term
        for _ in range(40):
            group.posted["a", "c"].clear()
            group.posted["b", "c"].clear()
            group.pass_time(0.1)
            for name in "abc":
                group.players[name].round()
            for a, b in (("a", "b"), ("b", "a"), ("c", "a"), ("c", "b")):
                group.deliver(a, b)
        held = group.core("a").state == LEADER and group.core("a").term == term
        return [] if held else ["the leader was deposed by one who is deaf"]


def a_manager_that_returns_deposes_the_leader() -> list[str]:
    with scripted("abc") as group:
        group.elect("a", "bc")
        group.talk("abc")
        term = group.core("a").term
        for _ in range(60):
            group.pass_time(0.1)
            group.players["c"].round()
            group.talk("ab", rounds=1)
        group.lose()
        group.talk("abc")
        held = group.core("a").state == LEADER and group.core("a").term == term
        return [] if held else ["the leader was deposed by one who came back"]


def a_leader_that_is_cut_off_goes_on_leading() -> list[str]:
    with scripted("abc") as group:
        group.elect("a", "bc")
        group.talk("abc")
        for _ in range(30):
            group.pass_time(0.1)
            group.players["a"].round()
        return ["it still leads after 3 s alone"] if group.core("a").state == LEADER else []


def a_vote_is_forgotten_in_a_crash() -> list[str]:
    with scripted("abc") as group:
        group.elect("a", "b", until_committed=False)
        group.crash("b")
        group.start("b")
        group.lose()
        group.try_to_elect("c", "b")
        return group.violations()


def a_leader_that_was_asleep_answers_a_read_from_the_past() -> list[str]:
    async def run() -> World:
        world = World(random.Random(1), settings=RaftSettings())
        world.delay_seconds = 0.001
        world.sync_seconds = dict.fromkeys(world.names, 0.001)
        world.found()
        for name in world.names:
            world.start(name)
        await world.until(lambda: world.leader() is not None, 10)
        old = world.leader()
        assert old is not None
        world.pause(old.name, 4.0)
        await world.until(lambda: any(m.node.is_leader for m in world.alive() if m is not old), 5)
        new = next(m for m in world.alive() if m is not old and m.node.is_leader)
        world.submit(new.name, b"1")
        await world.until(lambda: b"1" in world.acknowledged, 5)
        assert old.node.is_leader, "it has not noticed yet"
        world.read(old.name)
        await asyncio.sleep(6)
        await settle(world)
        check(world)
        return world

    return run_virtually(run).violations


SCENARIOS: list[tuple[Scenario, Callable[[], object]]] = [
    (
        s1_a_late_ack_makes_the_leader_send_again_and_the_follower_drop_what_it_confirmed,
        naive.late_acks_count_backwards,
    ),
    (s2_an_ack_of_a_former_term_counts_for_other_entries, naive.acks_without_a_term),
    (s3_a_commit_index_covers_entries_that_were_never_compared, naive.commits_run_ahead),
    (s4_a_conflicting_tail_is_never_repaired, naive.rejections_without_a_hint),
    (s5_a_leader_that_is_alone_removes_everybody_else, naive.many_membership_changes_at_once),
    (s6_a_caller_is_never_answered, naive.callers_forgotten),
    (s6_a_caller_is_told_that_it_was_not_done_and_it_is, naive.callers_told_that_it_was_not_done),
    (s7_an_entry_that_fails_stops_every_manager, naive.exceptions_of_the_state_machine_escape),
    (s8_a_snapshot_with_a_part_missing_is_taken_up, naive.snapshots_taken_as_they_come),
    (s9_a_vote_that_comes_twice_counts_twice, naive.votes_counted_by_message),
    (s13_a_caller_gets_the_answer_of_another, naive.callers_known_by_index_alone),
    (
        figure_8_an_entry_of_a_former_term_is_committed_by_counting,
        naive.entries_of_former_terms_committed_by_counting,
    ),
    (a_manager_that_hears_nobody_deposes_the_leader, naive.elections_without_a_question_first),
    (a_manager_that_returns_deposes_the_leader, naive.elections_without_a_question_first),
    (a_leader_that_is_cut_off_goes_on_leading, naive.leaders_that_never_step_down),
    (a_vote_is_forgotten_in_a_crash, naive.votes_not_on_disk),
    (a_leader_that_was_asleep_answers_a_read_from_the_past, naive.reads_on_trust),
]


def _name(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("scenario", [s for s, _ in SCENARIOS], ids=_name)
def test_it_does_not_happen_that(scenario: Scenario) -> None:
    assert scenario() == []


@pytest.mark.parametrize(("scenario", "without"), SCENARIOS, ids=_name)
def test_without_its_correction_it_happens_that(scenario: Scenario, without: Callable[[], object]) -> None:
    with cast(AbstractContextManager[None], without()):
        assert scenario() != []


def test_a_group_that_is_left_alone_has_no_violations() -> None:
    with scripted("abc") as group:
        _ordinary_day(group)

        assert group.violations() == []


def _ordinary_day(group: Group) -> None:
    group.elect("a", "bc")
    for number in range(20):
        group.propose("a", b"%d" % number)
    group.talk("abc")
