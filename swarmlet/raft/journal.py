"""The durable log: entries, term, vote and commit index in one append-only file.

Used by `core` through PySyncObj's journal interface. What is added is in memory at
once and on disk after `sync`, which is the only method that touches the file after
opening and may run in a thread while nobody else uses the journal. Whoever sends a
message that reflects the log or the term first waits for `sync`.

File: an 8-byte magic, then frames. A frame holds everything that one sync made
durable: `magic u32, crc32 u32, length u64, sequence u64`, then `length` bytes of
records. A frame is begun only after the one before it was synced, so an unreadable
last frame is a write that a crash cut short and nobody was told of: it is removed.
An unreadable frame with a readable one behind it is corruption: opening is refused.
A compacted file comes into being whole, by a rename; it ends with an empty frame, so
that damage to the rest of it is never taken for a write that was cut short.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import overload

import structlog
from pysyncobj.journal import Journal as SyncObjJournal

from swarmlet.api.errors import SwarmletError
from swarmlet.raft.files import replace_file

FILE_MAGIC = b"SWJRNL\x00\x01"
FRAME_MAGIC = 0x53574A46
_FRAME = struct.Struct("<IIQQ")
_CRC_PART = struct.Struct("<QQ")
_RECORD = struct.Struct("<BQ")
_ENTRY = struct.Struct("<QQ")
_NUMBER = struct.Struct("<Q")

_RECORD_ENTRY = 1
_RECORD_TRUNCATE = 2
_RECORD_TERM = 3
_RECORD_COMMIT = 4

Entry = tuple[bytes, int, int]
"""Command, index, term: PySyncObj's order."""

log = structlog.get_logger(__name__)


class JournalCorrupt(SwarmletError):
    """The file on disk cannot be trusted; the node must not take part with it."""


class Journal(SyncObjJournal):  # type: ignore[misc]
    """PySyncObj's log. One user at a time; `entries` are contiguous by index."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file. Raises JournalCorrupt or OSError."""
        self._path = path
        self._entries: list[Entry] = []
        self._term = 0
        self._vote: str | None = None
        self._commit_index = 1
        self._commit_recorded = 1
        self._pending: list[bytes] = []
        self._term_pending = False
        self._rewrite = False
        self._sequence = 0
        if not path.exists():
            replace_file(path, [FILE_MAGIC])
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            self._load()
            # What a killed process wrote and did not sync is in the page cache, and was just believed.
            os.fdatasync(self._fd)
        except BaseException:
            os.close(self._fd)
            raise
        self._commit_recorded = self._commit_index

    # ---- durability

    @property
    def dirty(self) -> bool:
        """Whether something in memory is not on disk yet."""
        return bool(self._pending) or self._rewrite

    @property
    def term_pending(self) -> bool:
        """Whether the term or the vote is not on disk yet."""
        return self._term_pending

    def sync(self) -> None:
        """Makes everything durable. Raises OSError; the journal must then not be used any more."""
        if self._rewrite:
            self._write_anew()
        elif self._pending:
            self._append_durably(self._frame(b"".join(self._pending)))
        self._pending.clear()
        self._term_pending = False

    def close(self) -> None:
        os.close(self._fd)

    # ---- PySyncObj's interface

    def add(self, command: bytes, idx: int, term: int) -> None:
        if self._entries and idx != self._entries[-1][1] + 1:
            raise ValueError(f"entry {idx} does not follow entry {self._entries[-1][1]}")
        self._entries.append((command, idx, term))
        self._record(_RECORD_ENTRY, _ENTRY.pack(idx, term), command)

    def clear(self) -> None:
        self._entries.clear()
        self._rewrite = True

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803 - PySyncObj's name
        """Drops the entries from position `entryFrom` on."""
        if entryFrom >= len(self._entries):
            return
        index = self._entries[entryFrom][1]
        del self._entries[entryFrom:]
        self._record(_RECORD_TRUNCATE, _NUMBER.pack(index))

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803 - PySyncObj's name
        """Drops the entries before position `entryTo`: they are in a snapshot."""
        if entryTo <= 0:
            return
        del self._entries[:entryTo]
        self._rewrite = True

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> list[Entry]: ...
    def __getitem__(self, item: int | slice) -> Entry | list[Entry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def _destroy(self) -> None:
        self.close()

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803 - PySyncObj's name
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:  # noqa: N802 - PySyncObj's name
        return self._commit_index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803 - PySyncObj's name
        if (term, votedForNodeId) == (self._term, self._vote):
            return
        self._term, self._vote = term, votedForNodeId
        self._term_pending = True
        self._record(_RECORD_TERM, _NUMBER.pack(term), (votedForNodeId or "").encode())

    def getCurrentTerm(self) -> int:  # noqa: N802 - PySyncObj's name
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802 - PySyncObj's name
        return self._vote

    def onOneSecondTimer(self) -> None:  # noqa: N802 - PySyncObj's name
        """Notes the commit index, so that a restarted manager shows its state before it hears a leader."""
        if self._commit_index != self._commit_recorded:
            self._commit_recorded = self._commit_index
            self._record(_RECORD_COMMIT, _NUMBER.pack(self._commit_index))

    # ---- writing

    def _record(self, kind: int, *parts: bytes) -> None:
        self._pending.append(_record(kind, *parts))

    def _frame(self, payload: bytes) -> bytes:
        self._sequence += 1
        crc = zlib.crc32(payload, zlib.crc32(_CRC_PART.pack(len(payload), self._sequence)))
        return _FRAME.pack(FRAME_MAGIC, crc, len(payload), self._sequence) + payload

    def _append_durably(self, frame: bytes) -> None:
        size = os.fstat(self._fd).st_size
        try:
            self._write_all(frame)
            os.fdatasync(self._fd)
        except OSError:
            # A failed sync may leave the frame readable, but not on disk: nobody must find it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def _write_anew(self) -> None:
        records = [_record(_RECORD_TERM, _NUMBER.pack(self._term), (self._vote or "").encode())]
        records += [_record(_RECORD_ENTRY, _ENTRY.pack(i, t), c) for c, i, t in self._entries]
        records.append(_record(_RECORD_COMMIT, _NUMBER.pack(self._commit_index)))
        replace_file(self._path, [FILE_MAGIC, self._frame(b"".join(records)), self._frame(b"")])
        old = self._fd
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.close(old)
        self._rewrite = False

    # ---- reading

    def _load(self) -> None:
        data = self._path.read_bytes()
        if data[: len(FILE_MAGIC)] != FILE_MAGIC:
            raise JournalCorrupt(f"{self._path} is not a raft journal of this version")
        position = len(FILE_MAGIC)
        while position < len(data):
            payload = self._read_frame(data, position)
            if payload is None:
                self._cut_torn_tail(data, position)
                return
            self._replay(payload, position)
            position += _FRAME.size + len(payload)

    def _read_frame(self, data: bytes, position: int) -> bytes | None:
        """The frame's records, or None when there is no valid frame at `position`."""
        header = data[position : position + _FRAME.size]
        if len(header) < _FRAME.size:
            return None
        magic, crc, length, sequence = _FRAME.unpack(header)
        start = position + _FRAME.size
        if magic != FRAME_MAGIC or start + length > len(data):
            return None
        payload = data[start : start + length]
        if zlib.crc32(payload, zlib.crc32(_CRC_PART.pack(length, sequence))) != crc:
            return None
        if sequence <= self._sequence:
            raise JournalCorrupt(
                f"{self._path}: frame {sequence} at offset {position} follows {self._sequence}"
            )
        self._sequence = sequence
        return payload

    def _cut_torn_tail(self, data: bytes, position: int) -> None:
        marker = FRAME_MAGIC.to_bytes(4, "little")
        behind = data.find(marker, position + 1)
        while behind != -1:
            if self._is_valid_frame(data, behind):
                raise JournalCorrupt(
                    f"{self._path} is damaged at offset {position} with intact data behind it; "
                    "restore this manager's state from a backup, or remove the manager and let it join again"
                )
            behind = data.find(marker, behind + 1)
        log.warning("removed an unfinished write", path=str(self._path), bytes=len(data) - position)
        os.ftruncate(self._fd, position)
        os.fsync(self._fd)

    def _is_valid_frame(self, data: bytes, position: int) -> bool:
        before = self._sequence
        try:
            return self._read_frame(data, position) is not None
        except JournalCorrupt:
            # Intact, but older than what was read: content of an entry, say.
            return False
        finally:
            self._sequence = before

    def _replay(self, payload: bytes, position: int) -> None:
        try:
            for kind, body in _records(payload):
                self._replay_record(kind, body)
        except (struct.error, ValueError, UnicodeDecodeError) as error:
            raise JournalCorrupt(
                f"{self._path}: bad record in the frame at offset {position}: {error}"
            ) from error

    def _replay_record(self, kind: int, body: bytes) -> None:
        if kind == _RECORD_ENTRY:
            index, term = _ENTRY.unpack_from(body)
            if self._entries and index != self._entries[-1][1] + 1:
                raise ValueError(f"entry {index} follows entry {self._entries[-1][1]}")
            self._entries.append((body[_ENTRY.size :], index, term))
        elif kind == _RECORD_TRUNCATE:
            (index,) = _NUMBER.unpack(body)
            if not self._entries or not self._entries[0][1] <= index <= self._entries[-1][1]:
                raise ValueError(f"truncation to {index} outside of the log")
            del self._entries[index - self._entries[0][1] :]
        elif kind == _RECORD_TERM:
            (self._term,) = _NUMBER.unpack_from(body)
            self._vote = body[_NUMBER.size :].decode() or None
        elif kind == _RECORD_COMMIT:
            (self._commit_index,) = _NUMBER.unpack(body)
        else:
            raise ValueError(f"record of unknown kind {kind}")


def _record(kind: int, *parts: bytes) -> bytes:
    return b"".join((_RECORD.pack(kind, sum(map(len, parts))), *parts))


def _records(payload: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(payload):
        kind, length = _RECORD.unpack_from(payload, position)
        position += _RECORD.size
        if position + length > len(payload):
            raise ValueError("record reaches beyond its frame")
        yield kind, payload[position : position + length]
        position += length
