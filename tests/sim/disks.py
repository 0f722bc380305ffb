"""Simulated disks: what was synced survives a crash, everything else is lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from swarmlet.api import pb
from swarmlet.raft.engine import MEMBERSHIP, NOOP
from swarmlet.raft.journal import Entry, Journal
from swarmlet.raft.snapshot import Snapshot, SnapshotFile, decode


@dataclass
class Disk:
    """What survives a crash."""

    entries: list[Entry] = field(default_factory=list)
    term: int = 0
    vote: str | None = None
    commit: int = 1
    snapshot: bytes | None = None

    def found(self, members: list[str]) -> None:
        """Begins with the log of a group that has these members, all with the same entries."""
        self.entries = [(NOOP, 1, 0)]
        for number, name in enumerate(members):
            change = pb.MembershipChange(
                action=pb.MembershipChange.ADD, member=pb.RaftMember(node_id=name, address=name)
            )
            self.entries.append((MEMBERSHIP + change.SerializeToString(), number + 2, 1))
        self.term = 1
        self.commit = len(members) + 1


class DiskJournal(Journal):
    """The journal's interface over a simulated disk: nothing is durable but by `sync`."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._entries = list(disk.entries)
        self._term, self._vote = disk.term, disk.vote
        self._commit_index = self._commit_recorded = disk.commit
        self._pending = []
        self._term_pending = False
        self._rewrite = False

    def sync(self) -> None:
        self._disk.entries = list(self._entries)
        self._disk.term, self._disk.vote = self._term, self._vote
        self._disk.commit = self._commit_recorded
        self._pending.clear()
        self._rewrite = self._term_pending = False

    def close(self) -> None:
        pass


class DiskSnapshots:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def load(self) -> Snapshot | None:
        return None if self._disk.snapshot is None else decode(self._disk.snapshot, "simulated snapshot")

    def read(self) -> bytes:
        assert self._disk.snapshot is not None
        return self._disk.snapshot

    def write(self, encoded: bytes) -> None:
        self._disk.snapshot = encoded


class DiskFiles:
    def __init__(self, disk: Disk) -> None:
        self.snapshot_file = cast(SnapshotFile, DiskSnapshots(disk))
        self.snapshot = self.snapshot_file.load()
        self.journal = DiskJournal(disk)
