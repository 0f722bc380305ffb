"""Whom a manager takes for unreachable, and since when."""

from __future__ import annotations

from swarmlet.raft.contact import Contact


def a_contact(*connected: str, leader: str | None = "b") -> Contact:
    """At 0 s, with the peers connected."""
    contact = Contact(silence_seconds=2.0)
    contact.leader_is(leader, 0.0)
    for peer in connected:
        contact.connected(peer, 0.0)
    return contact


def test_peers_that_are_connected_are_reachable() -> None:
    assert a_contact("b", "c").unreachable({"b", "c"}, 100.0) == {}


def test_a_peer_that_never_answered_is_unreachable_since_the_beginning() -> None:
    assert a_contact("b").unreachable({"b", "c"}, 5.0) == {"c": 5.0}


def test_a_broken_connection_counts_from_its_end() -> None:
    contact = a_contact("b", "c")

    contact.disconnected("c", 10.0)

    assert contact.unreachable({"b", "c"}, 12.0) == {"c": 2.0}


def test_a_peer_that_is_back_is_reachable() -> None:
    contact = a_contact("b", "c")
    contact.disconnected("c", 10.0)

    contact.connected("c", 12.0)

    assert contact.unreachable({"b", "c"}, 100.0) == {}


def test_followers_may_be_silent_to_each_other_while_somebody_leads() -> None:
    contact = a_contact("b", "c")

    contact.heard("b", 99.0)

    assert contact.unreachable({"b", "c"}, 100.0) == {}


def test_without_a_leader_who_does_not_answer_is_unreachable_however_connected() -> None:
    contact = a_contact("b", "c")
    contact.leader_is(None, 10.0)

    contact.heard("c", 14.0)

    assert contact.unreachable({"b", "c"}, 11.0) == {}
    assert contact.unreachable({"b", "c"}, 15.0) == {"b": 5.0}


def test_a_connection_that_breaks_late_does_not_make_the_silence_shorter() -> None:
    contact = a_contact("b", "c")
    contact.leader_is(None, 10.0)
    contact.heard("c", 29.0)

    contact.disconnected("b", 23.0)

    assert contact.unreachable({"b", "c"}, 30.0) == {"b": 20.0}
