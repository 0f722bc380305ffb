"""One manager on real files: what it does when its disk, its state or its thread fails."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import Unavailable, UnknownOutcome
from swarmlet.raft import node as node_module
from swarmlet.raft.agreement import StateMachine
from swarmlet.raft.engine import RaftSettings
from swarmlet.raft.journal import JournalCorrupt
from swarmlet.raft.node import RaftFiles, RaftNode, RaftStopped, bootstrap
from swarmlet.raft.snapshot import Snapshot, SnapshotCorrupt
from tests.unit.raft.managers import ListMachine, eventually

SETTINGS = RaftSettings(heartbeat_seconds=0.05, election_seconds_min=0.2, election_seconds_max=0.4)


class NoPeers:
    """A transport that reaches nobody."""

    def __init__(self) -> None:
        self.peers: Mapping[str, str] = {}
        self.sent: list[pb.RaftMessage] = []

    def set_peers(self, peers: Mapping[str, str]) -> None:
        self.peers = peers

    def send(self, peer: str, message: pb.RaftMessage) -> None:
        self.sent.append(message)


def new_node(
    directory: Path,
    *,
    first: bool = True,
    settings: RaftSettings = SETTINGS,
    machine: StateMachine | None = None,
) -> RaftNode:
    files = RaftFiles(directory)
    if first and files.is_empty:
        bootstrap(files, pb.RaftMember(node_id="a", address="a:1"))
    return RaftNode(
        node_id="a",
        files=files,
        machine=machine or ListMachine(),
        transport=NoPeers(),
        settings=settings,
        rng=random.Random(1),
    )


@asynccontextmanager
async def running(node: RaftNode) -> AsyncIterator[asyncio.Task[None]]:
    """Runs it, and waits until it leads."""
    task = asyncio.create_task(node.run())
    try:
        await eventually(lambda: node.is_leader or task.done())
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def operations(node: RaftNode) -> list[bytes]:
    return cast(ListMachine, node._machine).operations


async def test_a_manager_alone_commits_and_finds_everything_again(tmp_path: Path) -> None:
    node = new_node(tmp_path / "raft")
    async with running(node):
        assert await node.propose(b"1") == 1
        await node.barrier()
    again = new_node(tmp_path / "raft")

    async with running(again):
        assert operations(again) == [b"1"]
        assert await again.propose(b"2") == 2


@pytest.mark.parametrize("call", ["write", "fdatasync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_a_manager_whose_disk_fails_stops_loudly_and_acknowledges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    node = new_node(tmp_path / "raft")
    async with running(node) as task:
        await node.propose(b"kept")
        seen = await node.leadership(0)

        def fail(*_: object) -> int:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(UnknownOutcome):
                await node.propose(b"lost")
            with pytest.raises(RaftStopped, match=os.strerror(code)):
                await task

        assert not node.is_leader
        assert await node.leadership(seen) > seen, "who waits for the leader's loops to end is told"
        with pytest.raises(Unavailable, match=os.strerror(code)):
            await node.propose(b"later")
    again = new_node(tmp_path / "raft")
    async with running(again):
        assert operations(again) == [b"kept"]


@contextmanager
def small_tmpfs(path: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


async def test_a_really_full_disk_stops_the_manager_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "small") as small:
        node = new_node(small / "raft")
        acknowledged = []
        async with running(node) as task:
            with pytest.raises(UnknownOutcome):
                for number in range(1000):
                    await node.propose(b"%d" % number + b"x" * 5000)
                    acknowledged.append(number)
            with pytest.raises(RaftStopped):
                await task
        shutil.copytree(small / "raft", tmp_path / "copy")
        again = new_node(tmp_path / "copy")
        async with running(again):
            found = [int(o.rstrip(b"x")) for o in operations(again)]

        assert len(acknowledged) > 5
        assert found[: len(acknowledged)] == acknowledged


async def test_corrupt_state_is_refused_at_the_start(tmp_path: Path) -> None:
    node = new_node(tmp_path / "raft")
    async with running(node):
        for number in range(5):
            await node.propose(b"%d" % number)
    journal = tmp_path / "raft" / "journal"
    data = bytearray(journal.read_bytes())
    data[60] ^= 1
    journal.write_bytes(data)

    with pytest.raises(JournalCorrupt, match=str(journal)):
        RaftFiles(tmp_path / "raft")


async def test_a_corrupt_snapshot_is_refused_at_the_start(tmp_path: Path) -> None:
    node = new_node(tmp_path / "raft", settings=RaftSettings(snapshot_entries=5))
    async with running(node):
        for number in range(20):
            await node.propose(b"%d" % number)
        await eventually(lambda: node.core._snapshot_index > 1)
    snapshot = tmp_path / "raft" / "snapshot"
    snapshot.write_bytes(snapshot.read_bytes()[:-1])

    with pytest.raises(SnapshotCorrupt, match=str(snapshot)):
        RaftFiles(tmp_path / "raft")


async def test_a_lost_snapshot_is_noticed_at_the_start(tmp_path: Path) -> None:
    node = new_node(tmp_path / "raft", settings=RaftSettings(snapshot_entries=5))
    async with running(node):
        for number in range(20):
            await node.propose(b"%d" % number)
        await eventually(lambda: node.core._snapshot_index > 1)
    files = RaftFiles(tmp_path / "raft")
    files.journal.deleteEntriesTo(5)
    files.journal.sync()
    files.journal.close()
    (tmp_path / "raft" / "snapshot").unlink()

    with pytest.raises(ValueError, match="missing"):
        new_node(tmp_path / "raft")


class FailingSnapshots(ListMachine):
    def __init__(self) -> None:
        super().__init__()
        self.attempts = 0
        self.fails = True

    def snapshot(self) -> Callable[[], bytes]:
        self.attempts += 1
        if self.fails:
            raise KeyError("a defect")
        return super().snapshot()


async def test_a_snapshot_that_cannot_be_taken_is_tried_again_but_not_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "SNAPSHOT_RETRY_SECONDS", 1.0)
    machine = FailingSnapshots()
    settings = RaftSettings(
        heartbeat_seconds=0.01, election_seconds_min=0.1, election_seconds_max=0.2, snapshot_entries=5
    )
    node = new_node(tmp_path / "raft", settings=settings, machine=machine)
    async with running(node):
        for number in range(50):
            await node.propose(b"%d" % number)
        assert 1 <= machine.attempts < 5

        machine.fails = False

        await eventually(lambda: node.core._snapshot_index > 1)


async def test_the_leaders_snapshot_and_ones_own_are_never_mixed(tmp_path: Path) -> None:
    """One's own is still being written, slowly, when a newer one comes from the leader."""
    node = new_node(tmp_path / "raft")
    file = node._files.snapshot_file
    real_write, may_go_on, began = file.write, threading.Event(), threading.Event()
    writing: list[int] = []
    at_once: list[int] = []

    def slow_write(encoded: bytes) -> None:
        writing.append(1)
        at_once.append(len(writing))
        began.set()
        may_go_on.wait(10)
        real_write(encoded)
        writing.pop()

    file.write = slow_write  # type: ignore[method-assign]
    own = Snapshot(10, 1, [], b"own").encode()
    theirs = Snapshot(20, 1, [], b"theirs").encode()

    first = asyncio.create_task(asyncio.to_thread(node._keep_snapshot, 10, own))
    await asyncio.to_thread(began.wait, 10)
    second = asyncio.create_task(asyncio.to_thread(node._keep_snapshot, 20, theirs))
    await asyncio.sleep(0.05)
    may_go_on.set()
    await asyncio.gather(first, second)
    node._keep_snapshot(15, Snapshot(15, 1, [], b"late").encode())

    assert max(at_once) == 1
    kept = file.load()
    assert kept is not None
    assert kept.state == b"theirs"
    node._files.journal.close()


async def test_a_manager_that_is_stopped_while_it_writes_finishes_the_write(tmp_path: Path) -> None:
    node = new_node(tmp_path / "raft")
    journal = node._files.journal
    real_sync, may_go_on, began = journal.sync, threading.Event(), threading.Event()
    closed: list[bool] = []
    finished: list[bool] = []
    real_close = journal.close

    def slow_sync() -> None:
        began.set()
        may_go_on.wait(10)
        real_sync()
        finished.append(bool(closed))

    def noted_close() -> None:
        closed.append(True)
        real_close()

    async with running(node) as task:
        journal.sync = slow_sync  # type: ignore[method-assign]
        journal.close = noted_close  # type: ignore[method-assign]
        write = asyncio.create_task(node.propose(b"1"))
        await asyncio.to_thread(began.wait, 10)

        task.cancel()
        await asyncio.sleep(0.05)
        may_go_on.set()
        await asyncio.gather(task, return_exceptions=True)

        assert finished == [False], "the file was still open"
        assert closed == [True]
        with pytest.raises(UnknownOutcome):
            await write
    again = new_node(tmp_path / "raft")
    async with running(again):
        assert operations(again) == [b"1"], "and unknown it was"


async def test_writes_that_come_together_share_a_sync(tmp_path: Path) -> None:
    node = new_node(tmp_path / "raft")
    syncs: list[int] = []
    real_sync = node._files.journal.sync

    def counted() -> None:
        syncs.append(1)
        real_sync()

    node._files.journal.sync = counted  # type: ignore[method-assign]
    async with running(node):
        syncs.clear()

        await asyncio.gather(*(node.propose(b"%d" % n) for n in range(200)))

        assert len(syncs) < 10


async def test_a_write_costs_one_sync(tmp_path: Path) -> None:
    node = new_node(tmp_path / "raft")
    syncs: list[int] = []
    real_sync = node._files.journal.sync

    def counted() -> None:
        syncs.append(1)
        real_sync()

    node._files.journal.sync = counted  # type: ignore[method-assign]
    async with running(node):
        syncs.clear()

        for number in range(50):
            await node.propose(b"%d" % number)

        assert len(syncs) < 60


async def test_too_many_waiting_writes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "PROPOSALS_MAX", 10)
    node = new_node(tmp_path / "raft")
    async with running(node):
        results = await asyncio.gather(*(node.propose(b"%d" % n) for n in range(30)), return_exceptions=True)

        refused = [r for r in results if isinstance(r, Unavailable)]
        assert len(refused) == 20
        await asyncio.sleep(0.1)
        assert len(operations(node)) == 10, "what was refused is not done later"


async def test_a_defect_in_the_protocol_stops_the_manager_loudly(tmp_path: Path) -> None:
    node = new_node(tmp_path / "raft")
    async with running(node) as task:

        def defect() -> None:
            raise AssertionError("an invariant does not hold")

        node._on_core(defect)

        with pytest.raises(RaftStopped, match="invariant"):
            await task
        assert not node.is_leader
