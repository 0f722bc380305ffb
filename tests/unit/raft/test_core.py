"""What one manager's protocol does, message by message."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarmlet.api import pb
from swarmlet.raft import leader
from swarmlet.raft.engine import FOLLOWER, LEADER, RaftSettings
from tests.sim.scripted import Group, scripted

ADD, REMOVE = pb.MembershipChange.ADD, pb.MembershipChange.REMOVE


@pytest.fixture
def group() -> Iterator[Group]:
    with scripted("abc") as group:
        yield group


@pytest.fixture
def joining() -> Iterator[Group]:
    """Managers a, b and c with votes; d with nothing yet."""
    with scripted("abcd", members="abc") as group:
        group.elect("a", "bc")
        group.talk("abc")
        yield group


def posted(group: Group, a: str, b: str) -> list[pb.RaftMessage]:
    return [pb.RaftMessage.FromString(data) for data in group.posted[a, b]]


def member(name: str, address: str = "") -> pb.RaftMember:
    return pb.RaftMember(node_id=name, address=address or name)


# ---- joining and leaving


def test_a_learner_is_brought_up_to_date_and_does_not_count(joining: Group) -> None:
    joining.core("a").add_learner(member("d"))
    joining.talk("ad")

    told = joining.propose("a", b"1")
    joining.talk("ad")

    assert joining.core("a").learner_is_current("d")
    assert joining.players["d"].log() == [b"1"]
    assert told.times == 0


def test_what_a_learner_confirmed_is_forgotten_with_the_leadership(joining: Group) -> None:
    joining.core("a").add_learner(member("d"))
    joining.talk("abcd")
    assert joining.core("a").learner_is_current("d")

    joining.elect("b", "c")
    joining.talk("abc")
    joining.elect("a", "bc")
    joining.core("a").add_learner(member("d"))

    assert not joining.core("a").learner_is_current("d")


def test_a_learner_counts_from_nothing_when_the_leader_changed_in_between(joining: Group) -> None:
    """What `d` confirmed to a's first term says nothing about the log that a has later."""
    joining.core("a").add_learner(member("d"))
    for number in range(20):
        joining.propose("a", b"lost %d" % number)
    joining.talk("ad")
    joining.lose()
    joining.elect("b", "c")
    joining.talk("abc")
    joining.elect("a", "bc")
    joining.talk("abc")

    joining.core("a").add_learner(member("d"))
    joining.change("a", ADD, "d")
    joining.talk("abc")
    told = joining.propose("a", b"1")
    joining.talk("ab")

    assert "d" in joining.core("a").members
    assert not told.acknowledged, "two of four have it"


def test_a_learner_without_members_can_answer_its_leader(joining: Group) -> None:
    for number in range(5):
        joining.propose("a", b"%d" % number)
    joining.talk("abc")
    joining.players["a"].fold()
    joining.core("a").add_learner(member("d", "d:1"))

    joining.players["a"].round()
    joining.talk("a")
    joining.deliver("a", "d", 1)

    assert joining.core("d").peers["a"] == "a"


def test_a_member_answers_a_leader_that_its_log_does_not_know_yet(joining: Group) -> None:
    joining.core("a").add_learner(member("d"))
    joining.talk("abd")
    joining.change("a", ADD, "d")
    joining.talk("abd")
    joining.elect("d", "ab")

    joining.players["d"].round()
    joining.deliver("d", "c", 1)

    assert "d" not in joining.core("c").members
    assert joining.core("c").peers["d"] == "d"


def test_a_vote_reaches_a_candidate_that_the_voter_does_not_know_yet(joining: Group) -> None:
    joining.core("a").add_learner(member("d"))
    joining.talk("abd")
    joining.change("a", ADD, "d")
    joining.talk("abd")
    joining.pass_time(5)
    joining.lose()

    joining.core("d")._SyncObj__raftElectionDeadline = joining.now
    joining.players["d"].round()
    joining.deliver("d", "c")

    assert joining.core("c").peers["d"] == "d"


def test_a_manager_that_asks_for_votes_after_its_removal_is_told_of_it(group: Group) -> None:
    group.elect("a", "bc")
    group.talk("abc")
    group.change("a", REMOVE, "c")
    group.talk("ab")
    assert "c" not in group.core("a").members

    group.pass_time(2)
    group.players["c"].round()
    group.deliver("c", "a")
    group.deliver("a", "c")

    assert group.core("c").was_removed


def test_a_removed_manager_finds_a_leader_that_it_has_never_heard_of(joining: Group) -> None:
    joining.core("a").add_learner(member("d"))
    joining.talk("abd")
    joining.change("a", ADD, "d")
    joining.talk("abd")
    joining.change("a", REMOVE, "c")
    joining.talk("abd")
    joining.elect("d", "ab")
    joining.talk("abd")
    joining.lose()
    assert "d" not in joining.core("c").members

    for _ in range(12):
        joining.pass_time(0.3)
        joining.talk("abd", rounds=2)
        joining.players["c"].round()
        for other in "abd":
            joining.deliver("c", other)
            joining.deliver(other, "c")

    assert joining.core("c").was_removed


def test_a_removal_that_is_not_committed_is_told_to_nobody(group: Group) -> None:
    group.elect("a", "bc")
    group.talk("abc")
    group.change("a", REMOVE, "c")
    group.players["a"].round()
    group.lose()

    group.pass_time(0.9)
    group.players["c"].round()
    group.deliver("c", "a")
    group.deliver("a", "c")

    assert not group.core("c").was_removed


def test_a_manager_that_comes_back_is_not_stopped_by_its_earlier_removal_in_the_log(group: Group) -> None:
    group.elect("a", "bc")
    group.talk("abc")
    group.change("a", REMOVE, "c")
    group.talk("ab")
    group.crash("c")
    group.disks["c"].__init__()  # type: ignore[misc]  # a new disk
    group.start("c")

    group.core("a").add_learner(member("c"))
    group.talk("abc")
    assert not group.core("c").was_removed
    group.change("a", ADD, "c")
    group.talk("abc")

    assert "c" in group.core("c").members
    assert not group.core("c").was_removed


def test_the_word_of_a_former_leader_removes_nobody(group: Group) -> None:
    group.elect("a", "bc")
    group.talk("abc")
    group.elect("b", "c")

    stale = pb.RaftMessage(term=group.core("a").term, removed=pb.Removed())
    group.core("c").receive("a", stale)

    assert not group.core("c").was_removed


def test_only_one_membership_change_is_taken_at_a_time(group: Group) -> None:
    group.elect("a", "bc")
    group.talk("abc")

    first = group.change("a", REMOVE, "b")
    second = group.change("a", REMOVE, "c")
    group.players["a"].round()

    assert first.times == 0
    assert second.outcome is not None


def test_a_leader_without_a_committed_entry_of_its_term_changes_no_membership(group: Group) -> None:
    group.elect("a", "bc")
    group.talk("abc")
    group.elect("b", "c", until_committed=False)

    told = group.change("b", REMOVE, "a")
    group.players["b"].round()

    assert told.outcome is not None


def test_a_membership_change_is_undone_with_its_entry(group: Group) -> None:
    group.elect("a", "bc")
    group.talk("abc")
    group.change("a", REMOVE, "c")
    group.players["a"].round()
    assert "c" not in group.core("a").members

    group.elect("b", "c")
    group.talk("abc")

    assert set(group.core("a").members) == set("abc")


def test_nobody_without_a_vote_leads(joining: Group) -> None:
    joining.core("d")._start_election(transfer=True)

    assert joining.core("d").state != LEADER


# ---- snapshots


def bring_far_behind(group: Group) -> None:
    """`c` lacks what `a` has folded into a snapshot."""
    group.elect("a", "bc")
    group.talk("abc")
    for number in range(8):
        group.propose("a", b"%d" % number)
    group.talk("ab")
    group.players["a"].fold()


def test_a_follower_that_is_too_far_behind_gets_the_snapshot(group: Group) -> None:
    bring_far_behind(group)

    group.core("a").peer_connected("c")
    group.talk("abc")

    assert group.players["c"].machine.operations == group.players["a"].machine.operations
    assert group.violations() == []


def test_membership_changes_of_a_tail_that_a_snapshot_replaced_are_gone(group: Group) -> None:
    group.elect("c", "ab")
    group.talk("abc")
    group.propose("c", b"never")
    group.propose("c", b"agreed")
    group.players["c"].round()
    group.change("c", REMOVE, "b")
    group.players["c"].round()
    assert "b" not in group.core("c").members
    group.lose()
    group.pass_time(3)
    group.elect("a", "b")
    # The snapshot ends where `c` has another entry, before its change of the members.
    group.talk("ab")
    group.propose("a", b"1")
    group.talk("ab")
    group.players["a"].fold()
    assert group.core("a")._snapshot_index < group.core("c").last_index
    group.lose()

    group.core("a").peer_connected("c")
    group.core("a")._SyncObj__raftNextIndex[_node("c")] = 2
    group.talk("abc")

    assert set(group.core("c").members) == set("abc")


def test_a_snapshot_on_its_way_survives_the_next_one(group: Group) -> None:
    bring_far_behind(group)
    leader_core = group.core("a")
    leader_core.peer_connected("c")
    leader_core._SyncObj__raftNextIndex[_node("c")] = 2
    group.players["a"].round()
    transfer = leader_core._transfers["c"]

    group.propose("a", b"more")
    group.talk("ab")
    header, _ = leader_core.begin_snapshot()
    leader_core.finish_snapshot(header.last_index)

    assert leader_core._transfers.get("c") is transfer
    assert leader_core._entry(transfer.last_index) is not None, "what follows the snapshot is kept"


def test_a_part_of_a_snapshot_repeated_or_out_of_place_is_ignored() -> None:
    with scripted("abc", settings=RaftSettings(snapshot_chunk_bytes=16)) as group:
        bring_far_behind(group)
        group.core("a").peer_connected("c")
        group.core("a")._SyncObj__raftNextIndex[_node("c")] = 2

        for _ in range(60):
            group.pass_time(0.02)
            group.players["a"].round()
            for data in list(group.posted["a", "c"]):
                group.post("a", "c", data)
            group.deliver("a", "c")
            group.deliver("c", "a")

        assert group.players["c"].machine.operations == group.players["a"].machine.operations


# ---- replication


def test_what_is_in_flight_to_a_silent_follower_is_bounded(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "APPEND_BYTES_MAX", 1000)
    monkeypatch.setattr(leader, "IN_FLIGHT_BYTES_MAX", 4000, raising=False)
    group.elect("a", "bc")
    group.talk("abc")
    group.lose()

    for _ in range(40):
        for _ in range(5):
            group.propose("a", b"x" * 400)
        group.players["a"].round()
        group.pass_time(0.2)
        group.deliver("a", "b")
        group.deliver("b", "a")

    assert sum(map(len, group.posted["a", "c"])) < 4000 + 2000 + 40 * 100
    group.talk("abc", rounds=60)
    assert group.players["c"].log() == group.players["a"].log()


def test_a_reconnected_follower_is_not_sent_the_whole_log_again(group: Group) -> None:
    group.elect("a", "bc")
    for _ in range(50):
        group.propose("a", b"x" * 1000)
    group.talk("abc")
    group.elect("b", "c")
    group.lose()

    group.core("b").peer_connected("c")
    group.players["b"].round()

    assert sum(map(len, group.posted["b", "c"])) < 5000


def test_a_follower_with_a_long_tail_of_another_term_is_repaired_in_few_exchanges(group: Group) -> None:
    group.elect("a", "bc")
    group.talk("abc")
    for _ in range(300):
        group.propose("a", b"lost")
    group.players["a"].round()
    group.lose()
    group.elect("b", "c")
    group.propose("b", b"kept")

    group.talk("abc", rounds=6)

    assert group.players["a"].log() == [b"kept"]


def test_a_follower_that_lost_what_it_had_confirmed_is_repaired(group: Group) -> None:
    """A disk that lied, or a damaged end of the log: what is committed is safe, and comes back."""
    group.elect("a", "bc")
    for number in range(5):
        group.propose("a", b"%d" % number)
    group.talk("abc")
    group.crash("c")
    del group.disks["c"].entries[-3:]
    group.disks["c"].commit = 2

    group.start("c")
    group.talk("abc")

    assert group.players["c"].machine.operations == group.players["a"].machine.operations
    assert group.violations() == []


def test_an_entry_counts_for_the_leader_only_when_it_is_on_its_disk(group: Group) -> None:
    group.elect("a", "bc")
    group.talk("abc")
    told = group.propose("a", b"1")
    leader_ = group.players["a"]

    leader_.core.take_proposals(leader_.proposals)
    leader_.core.replicate()
    group.deliver("a", "b")
    for data in group.posted["b", "a"]:
        group.receive("b", "a", data)

    assert told.times == 0, "only advance, after the sync, answers"
    leader_.files.journal.sync()
    leader_.core.advance()
    assert told.acknowledged


def test_a_leader_that_hears_no_majority_steps_down(group: Group) -> None:
    group.elect("a", "bc")
    group.talk("abc")

    group.pass_time(group.settings.election_seconds_max + 0.01)
    group.players["a"].round()

    assert group.core("a").state == FOLLOWER


def test_a_caller_is_told_that_the_outcome_is_unknown_when_the_leadership_is_lost(group: Group) -> None:
    group.elect("a", "bc")
    group.talk("abc")
    told = group.propose("a", b"1")
    group.players["a"].round()

    group.pass_time(5)
    group.players["a"].round()

    assert told.times == 1
    assert told.outcome is not None
    assert told.outcome.value == "unknown"


def test_a_failing_entry_is_answered_with_its_exception_and_stops_nobody(group: Group) -> None:
    group.elect("a", "bc")
    boom = group.propose("a", b"boom")
    told = group.propose("a", b"1")

    group.talk("abc")

    assert isinstance(boom.result, KeyError)
    assert told.acknowledged
    assert {tuple(p.machine.operations) for p in group.players.values()} == {(b"1",)}


def test_a_single_manager_leads_and_commits_alone() -> None:
    with scripted("a") as group:
        group.pass_time(2)
        for _ in range(4):
            group.players["a"].round()

        told = group.propose("a", b"1")
        for _ in range(3):
            group.players["a"].round()

        assert told.acknowledged


def test_a_restarted_manager_applies_what_it_knew_to_be_committed() -> None:
    with scripted("abc", settings=RaftSettings()) as group:
        group.elect("a", "bc")
        group.propose("a", b"1")
        group.talk("abc")
        group.propose("a", b"2")
        group.talk("abc")

        group.crash("a")
        group.start("a")
        group.players["a"].round()

        assert group.players["a"].machine.operations[:1] == [b"1"]


def _node(name: str) -> object:
    from pysyncobj.node import Node

    return Node(name)
