"""After a disaster: what is left of the old group meets the group that was made anew from one manager."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from swarmlet.api import pb
from swarmlet.raft.engine import FOLLOWER, LEADER
from swarmlet.raft.recovery import replay, reset_members
from tests.sim.disks import DiskJournal
from tests.sim.scripted import Group, scripted


class Forgetful:
    """What was applied does not matter where only the members are looked at."""

    def apply(self, index: int, data: bytes) -> None:
        pass

    def snapshot(self) -> Callable[[], bytes]:
        return bytes

    def restore(self, index: int, data: bytes) -> None:
        pass


@pytest.fixture
def reborn() -> Iterator[Group]:
    """b leads the old group of a, b and c; a, which was gone, begins anew by itself."""
    with scripted("abcd", members="abc") as group:
        group.elect("a", "bc")
        group.propose("a", b"before")
        group.talk("abc")
        group.crash("a")
        group.elect("b", "c")
        make_anew(group, "a")
        yield group


def make_anew(group: Group, name: str) -> None:
    journal = DiskJournal(group.disks[name])
    replayed = replay(journal, None, Forgetful())
    reset_members(journal, replayed, pb.RaftMember(node_id=name, address=name), [])
    group.start(name)


def deepen(group: Group) -> None:
    """Puts the old group's term far above the new one's, with a majority behind it."""
    for leader, voter in [("c", "b"), ("b", "c")] * 3:
        group.elect(leader, voter)
        group.propose(leader, b"of the past")
        group.talk("bc", rounds=3)


def lead_alone(group: Group) -> None:
    group.pass_time(5)
    group.players["a"].round()
    group.players["a"].round()
    assert group.core("a").leads


def test_an_old_leader_with_a_higher_term_is_not_followed(reborn: Group) -> None:
    deepen(reborn)
    lead_alone(reborn)
    assert reborn.core("b").term > reborn.core("a").term

    reborn.propose("b", b"for all of the old ones")
    reborn.talk("abc")

    assert reborn.core("a").state == LEADER
    assert reborn.players["a"].machine.operations == [b"before"]
    assert dict(reborn.core("a").members) == {"a": "a"}


def test_an_old_leader_is_not_followed_before_the_new_group_has_its_own(reborn: Group) -> None:
    deepen(reborn)

    for _ in range(5):
        reborn.pass_time(0.1)
        reborn.core("a")._postpone_election()
        reborn.players["b"].round()
        reborn.deliver("b", "a")

    assert reborn.core("a").leader_id is None
    assert reborn.core("a").term < reborn.core("b").term
    assert reborn.players["a"].log() == [b"before"]


def test_an_old_manager_is_told_that_it_is_none_any_more(reborn: Group) -> None:
    deepen(reborn)
    lead_alone(reborn)

    reborn.talk("abc")
    reborn.pass_time(5)
    reborn.talk("abc")

    for name in "bc":
        assert reborn.core(name).was_removed
        assert reborn.core(name).was_superseded


def test_an_old_candidate_gets_no_vote_and_raises_no_term(reborn: Group) -> None:
    lead_alone(reborn)
    term = reborn.core("a").term
    request = pb.RequestVote(last_log_index=1000, last_log_term=1000, transfer=True)
    message = pb.RaftMessage(term=1000, request_vote=request, sender_address="b")

    reborn.receive("b", "a", message.SerializeToString())
    reborn.players["a"].round()

    assert (reborn.core("a").state, reborn.core("a").term) == (LEADER, term)


def test_a_new_manager_that_is_still_reading_the_old_log_is_a_full_learner(reborn: Group) -> None:
    lead_alone(reborn)

    reborn.core("a").add_learner(pb.RaftMember(node_id="d", address="d"))
    reborn.talk("ad")
    told = reborn.change("a", pb.MembershipChange.ADD, "d")
    reborn.talk("ad")

    assert told.acknowledged
    assert reborn.core("d").generation == 1
    written = reborn.propose("a", b"after")
    reborn.talk("ad")
    assert written.acknowledged
    assert reborn.players["d"].machine.operations == [b"before", b"after"]


def test_a_follower_of_the_new_group_ignores_the_old_leader(reborn: Group) -> None:
    lead_alone(reborn)
    reborn.core("a").add_learner(pb.RaftMember(node_id="d", address="d"))
    reborn.talk("ad")
    reborn.change("a", pb.MembershipChange.ADD, "d")
    reborn.talk("ad")
    append = pb.AppendEntries(prev_index=1, prev_term=0, commit_index=1)
    message = pb.RaftMessage(term=1000, append_entries=append, sender_address="b")

    reborn.receive("b", "d", message.SerializeToString())
    reborn.players["d"].round()

    assert (reborn.core("d").state, reborn.core("d").leader_id) == (FOLLOWER, "a")


def test_a_restarted_manager_remembers_its_generation_also_from_a_snapshot(reborn: Group) -> None:
    lead_alone(reborn)
    header, _ = reborn.core("a").begin_snapshot()

    reborn.crash("a")
    reborn.start("a")

    assert reborn.core("a").generation == header.generation == 1
