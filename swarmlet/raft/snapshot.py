"""The snapshot file: the state machine's state, the members, and what of the log it covers.

`magic, header length u32, header, state, SHA-256 of everything before`. Written
aside, synced and renamed, so there is always one whole snapshot or none. The same
bytes are sent to a manager that is too far behind.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from swarmlet.api import pb
from swarmlet.api.errors import SwarmletError
from swarmlet.raft.files import replace_file

MAGIC = b"SWSNAP\x00\x01"
FORMAT = 1
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 32


class SnapshotCorrupt(SwarmletError):
    """The file cannot be trusted; the node must not take part with it."""


@dataclass(frozen=True)
class Snapshot:
    last_index: int
    last_term: int
    members: Sequence[pb.RaftMember]
    state: bytes
    generation: int = 0
    """How often the group was made anew from one manager."""

    def encode(self) -> bytes:
        header = pb.SnapshotHeader(
            format=FORMAT,
            last_index=self.last_index,
            last_term=self.last_term,
            members=self.members,
            state_bytes=len(self.state),
            generation=self.generation,
        ).SerializeToString()
        body = b"".join((MAGIC, _LENGTH.pack(len(header)), header, self.state))
        return body + hashlib.sha256(body).digest()


def decode(data: bytes, source: str) -> Snapshot:
    """Raises SnapshotCorrupt naming `source`."""
    start = len(MAGIC) + _LENGTH.size
    if data[: len(MAGIC)] != MAGIC or len(data) < start + _DIGEST_BYTES:
        raise SnapshotCorrupt(f"{source} is not a snapshot of this version")
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise SnapshotCorrupt(f"{source} is damaged: its checksum does not match")
    (header_bytes,) = _LENGTH.unpack_from(body, len(MAGIC))
    try:
        header = pb.SnapshotHeader.FromString(body[start : start + header_bytes])
    except DecodeError as error:
        raise SnapshotCorrupt(f"{source} has an unreadable header") from error
    if header.format != FORMAT:
        raise SnapshotCorrupt(f"{source} has format {header.format}; this version reads format {FORMAT}")
    state = body[start + header_bytes :]
    if len(state) != header.state_bytes:
        raise SnapshotCorrupt(f"{source} holds {len(state)} bytes of state instead of {header.state_bytes}")
    return Snapshot(header.last_index, header.last_term, list(header.members), state, header.generation)


class SnapshotFile:
    """Where this manager keeps its snapshot. Blocking: called from a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Snapshot | None:
        """Raises SnapshotCorrupt or OSError."""
        if not self._path.exists():
            return None
        return decode(self._path.read_bytes(), str(self._path))

    def read(self) -> bytes:
        return self._path.read_bytes()

    def write(self, encoded: bytes) -> None:
        """Durable on return. Raises OSError; the old snapshot is then still there."""
        replace_file(self._path, [encoded])
