"""Three managers over real gRPC and real files: joins, breaks, restarts, and what is on wire and disk."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import pickletools
from pathlib import Path

import pysyncobj.pickle
import pytest

from swarmlet.api.errors import NotLeader, SwarmletError, Unavailable
from swarmlet.raft.engine import RaftSettings
from tests.unit.raft.managers import eventually, managers


async def test_three_managers_agree(tmp_path: Path) -> None:
    async with managers(tmp_path, "a", "b", "c") as group:
        leader = await group.leader()

        results = await asyncio.gather(*(leader.node.propose(b"%d" % i) for i in range(50)))

        assert sorted(results) == list(range(1, 51))  # type: ignore[type-var]
        await group.agreed()
        assert [len(m.machine.operations) for m in group.running.values()] == [50, 50, 50]


async def test_a_manager_joins_whose_snapshot_needs_many_parts(tmp_path: Path) -> None:
    settings = RaftSettings(
        heartbeat_seconds=0.05, election_seconds_min=0.3, election_seconds_max=0.6, snapshot_entries=20
    )
    async with managers(tmp_path, "a", settings=settings) as group:
        leader = await group.leader()
        for number in range(40):
            await leader.node.propose(b"%d" % number + b"x" * 50_000)
        await eventually(lambda: leader.node.core._snapshot_index > 20)
        # What slow followers could still be sent as entries is gone.
        core = leader.node.core
        leader.files.journal.deleteEntriesTo(core._snapshot_index - leader.files.journal[0][1])

        await group.grow("b")

        await group.agreed()
        assert len(group.running["b"].machine.operations) == 40


async def test_the_cluster_goes_on_when_the_leader_is_gone_and_takes_it_back(tmp_path: Path) -> None:
    async with managers(tmp_path, "a", "b", "c") as group:
        first = await group.leader()
        await first.node.propose(b"before")

        await group.stop(first.name)
        second = await group.leader()
        await second.node.propose(b"meanwhile")
        await group.start(first.name)

        await eventually(lambda: group.running[first.name].machine.operations == [b"before", b"meanwhile"])


async def test_a_manager_that_is_not_reachable_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async with managers(tmp_path, "a", "b", "c") as group:
        leader = await group.leader()
        other = next(name for name in group.running if name != leader.name)
        group.relays[other].is_cut = True
        group.relays[other].break_connections()

        for number in range(30):
            await leader.node.propose(b"%d" % number)

        assert len(leader.machine.operations) == 30
        group.relays[other].is_cut = False
        await group.agreed()


async def test_a_demoted_manager_is_told_and_can_come_back(tmp_path: Path) -> None:
    async with managers(tmp_path, "a", "b", "c") as group:
        leader = await group.leader()
        gone = next(m for m in group.running.values() if m is not leader)

        await leader.node.remove_member(gone.name)

        assert gone.task is not None
        async with asyncio.timeout(10):
            await gone.task
        assert gone.node.was_removed
        await group.stop(gone.name)
        for path in gone.directory.iterdir():
            path.unlink()
        await leader.node.propose(b"without it")
        await group.grow(gone.name)
        await group.agreed()
        assert not group.running[gone.name].node.was_removed


async def test_a_member_that_lags_comes_back_under_a_new_address(tmp_path: Path) -> None:
    async with managers(tmp_path, "a", "b", "c") as group:
        leader = await group.leader()
        moved = next(m for m in group.running.values() if m is not leader)
        await group.stop(moved.name)
        for number in range(300):
            await leader.node.propose(b"%d" % number)
        old_relay = group.relays.pop(moved.name)
        await old_relay.stop()

        back = await group.start(moved.name)
        async with asyncio.timeout(10):
            await leader.node.add_member(back.member)

        await group.agreed()
        assert len(back.machine.operations) == 300


async def test_the_lead_can_be_handed_over_under_load(tmp_path: Path) -> None:
    async with managers(tmp_path, "a", "b", "c") as group:
        leader = await group.leader()
        target = next(name for name in group.running if name != leader.name)
        acknowledged: list[bytes] = []
        refused: list[bytes] = []

        async def write(number: int) -> None:
            for attempt in range(10_000):
                data = b"%d.%d" % (number, attempt)
                try:
                    await leader.node.propose(data)
                except NotLeader:
                    refused.append(data)
                    return
                except SwarmletError:
                    return
                acknowledged.append(data)

        writers = [asyncio.create_task(write(number)) for number in range(20)]
        await eventually(lambda: len(acknowledged) > 100)

        assert await leader.node.transfer_leadership(target)

        await asyncio.gather(*writers)
        assert (await group.leader(other_than=leader.name)).name == target
        await group.agreed()
        assert set(acknowledged) <= set(leader.machine.operations)
        assert not set(refused) & set(leader.machine.operations)


async def test_the_lead_is_not_handed_to_somebody_who_cannot_take_it(tmp_path: Path) -> None:
    async with managers(tmp_path, "a", "b", "c") as group:
        leader = await group.leader()
        target = next(name for name in group.running if name != leader.name)
        await group.stop(target)

        assert not await leader.node.transfer_leadership(target)
        assert not await leader.node.transfer_leadership("nobody")

        await leader.node.propose(b"1")


async def test_neither_the_wire_nor_the_disk_carries_a_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> bytes:
        raise AssertionError("something was pickled or unpickled")

    for module in (pickle, pysyncobj.pickle):
        for name in ("dumps", "loads", "dump", "load", "Pickler", "Unpickler", "to_bytes"):
            monkeypatch.setattr(module, name, forbidden, raising=False)
    settings = RaftSettings(
        heartbeat_seconds=0.05, election_seconds_min=0.3, election_seconds_max=0.6, snapshot_entries=30
    )
    async with managers(tmp_path, "a", "b", settings=settings) as group:
        leader = await group.leader()
        for number in range(70):
            await leader.node.propose(b"payload-%d" % number)
        await eventually(lambda: (leader.directory / "snapshot").exists())
        await group.grow("c")
        await group.agreed()
        await group.stop((await group.leader()).name)
        await (await group.leader()).node.propose(b"after")
        await group.agreed()

    wire = [bytes(relay.passed) for relay in group.relays.values()]
    disk = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"payload-69" in data for data in wire), "the wire was watched"
    assert any(b"payload-69" in data for data in disk), "the disk was watched"
    assert any(path.name == "snapshot" for path in tmp_path.rglob("*"))
    assert [found for data in wire + disk for found in pickles_in(data)] == []


def test_a_pickle_would_be_found() -> None:
    assert pickles_in(b"noise" + pysyncobj.pickle.dumps({"type": "append_entries"}) + b"noise")


def pickles_in(data: bytes) -> list[int]:
    """Offsets of what reads as a whole pickle (protocol 2 or later, as PySyncObj writes)."""
    found = []
    at = data.find(b"\x80")
    while at != -1:
        if at + 1 < len(data) and 2 <= data[at + 1] <= 5:
            with contextlib.suppress(ValueError):
                if len(list(pickletools.genops(data[at:]))) > 3:
                    found.append(at)
        at = data.find(b"\x80", at + 1)
    return found


async def test_a_stopped_manager_does_not_lead_and_answers_at_once(tmp_path: Path) -> None:
    async with managers(tmp_path, "a") as group:
        leader = await group.leader()
        seen = await leader.node.leadership(0)
        waiting = asyncio.create_task(leader.node.leadership(10_000))
        change = asyncio.create_task(leader.node.leadership(seen))
        applied = asyncio.create_task(leader.node.wait_applied(1 << 40))
        await asyncio.sleep(0)

        assert leader.task is not None
        leader.task.cancel()
        await asyncio.gather(leader.task, return_exceptions=True)

        assert not leader.node.is_leader
        assert await change > seen
        with pytest.raises(Unavailable):
            await applied
        with pytest.raises(Unavailable):
            await leader.node.propose(b"late")
        with pytest.raises(NotLeader):
            await leader.node.barrier()
        with pytest.raises(Unavailable):
            await leader.node.wait_applied(1 << 40)
        assert not waiting.done()
        waiting.cancel()
