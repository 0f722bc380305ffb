"""Whom a manager takes for unreachable, and since when."""

from __future__ import annotations

from pathlib import Path

from swarmlet.raft.contact import Contact
from tests.unit.raft.managers import eventually, managers


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


async def test_every_manager_sees_who_is_gone_and_who_is_back(tmp_path: Path) -> None:
    async with managers(tmp_path, "a", "b", "c") as group:
        leader = await group.leader()
        first, last = (m for m in group.running.values() if m is not leader)
        await eventually(lambda: not any(m.node.unreachable() for m in group.running.values()))

        await group.stop(leader.name)
        await eventually(lambda: all(set(m.node.unreachable()) == {leader.name} for m in (first, last)))
        await group.stop(first.name)
        await eventually(lambda: set(last.node.unreachable()) == {leader.name, first.name})
        await group.start(leader.name)

        await eventually(lambda: set(last.node.unreachable()) == {first.name})
