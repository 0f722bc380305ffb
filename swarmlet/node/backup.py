"""Backups, on the daemon's side: the state of the cluster as a stream of messages, and back.

The file that the user keeps, with its checksum and its encryption, is made by who
asks (`backupfile`): a passphrase never comes here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import datetime

import structlog

from swarmlet import __version__
from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument, SwarmletError
from swarmlet.control.terms import Terms
from swarmlet.node.disaster import BACKUP_FORMAT
from swarmlet.node.manager import Manager

AGREE_SECONDS = 5.0
CHUNK_BYTES = 1 << 20
STATE_BYTES_MAX = 2 << 30

log = structlog.get_logger(__name__)


async def backup(
    manager: Manager, *, cluster_id: str, now: Callable[[], datetime]
) -> AsyncGenerator[pb.BackupResponse, None]:
    """Everything that was committed before the call, as of one raft index.

    Without a leader: what this manager knows, with a warning that says so.
    """
    warnings = []
    try:
        await manager.control.under(Terms(seconds=AGREE_SECONDS)).be_current()
    except SwarmletError as error:
        log.warning("backup of this manager's own last state", error=str(error))
        warnings.append(
            f"this backup holds what this manager knew last, newer changes may be missing: {error.message}"
        )
    core = manager.raft.core
    # Of one moment: there is no await between the index and the copy.
    header = pb.BackupHeader(
        format=BACKUP_FORMAT,
        cluster_id=cluster_id,
        node_id=core.node_id,
        raft_index=core.applied_index,
        raft_term=core.term,
        generation=core.generation,
        version=__version__,
    )
    encode = manager.store.snapshot()
    header.time.FromDatetime(now())
    state = await asyncio.to_thread(encode)
    header.payload_bytes = len(state)
    yield pb.BackupResponse(header=header, warnings=warnings)
    for start in range(0, len(state), CHUNK_BYTES):
        yield pb.BackupResponse(state=state[start : start + CHUNK_BYTES])
    log.info("backup sent", raft_index=header.raft_index, bytes=len(state))


async def received(requests: AsyncIterator[pb.RestoreRequest]) -> tuple[pb.RestoreRequest, bytes]:
    """The first request, with the header, and the state. Raises InvalidArgument when it is not whole."""
    first: pb.RestoreRequest | None = None
    state = bytearray()
    async for request in requests:
        if first is None:
            first = request
            if not first.HasField("header") or first.header.payload_bytes > STATE_BYTES_MAX:
                raise InvalidArgument("this is not a backup that can be restored")
        else:
            state += request.state
            if len(state) > first.header.payload_bytes:
                break
    if first is None or len(state) != first.header.payload_bytes:
        raise InvalidArgument("the backup did not arrive whole")
    return first, bytes(state)
