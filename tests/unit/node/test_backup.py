"""Backups on the daemon's side: the state of one moment, with a warning when it may be old."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument, Unavailable
from swarmlet.control.terms import Terms
from swarmlet.node import backup as backups
from swarmlet.node.manager import Manager
from swarmlet.store.store import Store
from tests.builders import a_cluster, a_service, make_store
from tests.unit.node.statedirs import NOW


@dataclass
class FakeCore:
    node_id: str = "one"
    applied_index: int = 7
    term: int = 3
    generation: int = 1


@dataclass
class FakeRaft:
    core: FakeCore = field(default_factory=FakeCore)


class FakeControl:
    def __init__(self) -> None:
        self.has_leader = True

    def under(self, terms: Terms) -> FakeControl:
        return self

    async def be_current(self) -> None:
        if not self.has_leader:
            raise Unavailable("there is no leader")


class FakeManager:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.raft = FakeRaft()
        self.control = FakeControl()


@pytest.fixture
def manager() -> FakeManager:
    return FakeManager(make_store(a_cluster(id="cluster"), a_service("web")))


async def saved(manager: FakeManager) -> list[pb.BackupResponse]:
    messages = backups.backup(cast(Manager, manager), cluster_id="cluster", now=lambda: NOW)
    return [message async for message in messages]


async def sent(*requests: pb.RestoreRequest) -> AsyncIterator[pb.RestoreRequest]:
    for request in requests:
        yield request


async def test_the_header_comes_first_and_the_state_in_pieces(
    manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "CHUNK_BYTES", 10)

    first, *pieces = await saved(manager)

    assert (first.header.cluster_id, first.header.raft_index, first.header.generation) == ("cluster", 7, 1)
    assert first.header.time.ToDatetime(NOW.tzinfo) == NOW
    assert not first.warnings
    state = b"".join(piece.state for piece in pieces)
    assert len(state) == first.header.payload_bytes
    assert state == manager.store.snapshot()()


async def test_without_a_leader_the_backup_says_that_it_may_be_old(manager: FakeManager) -> None:
    manager.control.has_leader = False

    first, *pieces = await saved(manager)

    assert len(first.warnings) == 1 and "there is no leader" in first.warnings[0]
    assert pieces


async def test_what_was_saved_arrives(manager: FakeManager) -> None:
    first, *pieces = await saved(manager)
    requests = [pb.RestoreRequest(state=piece.state) for piece in pieces]

    header, state = await backups.received(sent(pb.RestoreRequest(header=first.header), *requests))

    assert header.header == first.header
    assert state == manager.store.snapshot()()


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [pb.RestoreRequest(state=b"x")],
        [pb.RestoreRequest(header=pb.BackupHeader(payload_bytes=3)), pb.RestoreRequest(state=b"ab")],
        [pb.RestoreRequest(header=pb.BackupHeader(payload_bytes=1)), pb.RestoreRequest(state=b"ab")],
        [pb.RestoreRequest(header=pb.BackupHeader(payload_bytes=1 << 40))],
    ],
)
async def test_what_is_not_a_whole_backup_is_refused(requests: list[pb.RestoreRequest]) -> None:
    with pytest.raises(InvalidArgument):
        await backups.received(sent(*requests))
