"""How managers come into the raft group and out of it: the service, and the caller's side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import structlog

from swarmlet.api import pb
from swarmlet.api.errors import NotLeader, SwarmletError, Unavailable, from_code
from swarmlet.api.v1 import raft_pb2_grpc
from swarmlet.api.wire import LEADER_TRAILER
from swarmlet.ca.authorize import peer_of
from swarmlet.raft.node import RaftNode

REDIRECTS_MAX = 5
JOIN_SECONDS_MAX = 70.0
LEAVE_SECONDS_MAX = 5.0

log = structlog.get_logger(__name__)

Channels = Callable[[str], grpc.aio.Channel]
"""address -> a channel on which any manager of the swarm is accepted."""


class MembershipServicer(raft_pb2_grpc.RaftMembershipServicer):
    """Managers only (the interceptor sees to that); a manager can only add itself."""

    def __init__(self, raft: RaftNode) -> None:
        self._raft = raft

    async def Join(  # noqa: N802 - the service's name
        self,
        request: pb.JoinMemberRequest,
        context: grpc.aio.ServicerContext[pb.JoinMemberRequest, pb.JoinMemberResponse],
    ) -> pb.JoinMemberResponse:
        if peer_of(context).node_id != request.member.node_id:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "a manager can only add itself")
        try:
            await self._raft.add_member(request.member)
        except SwarmletError as error:
            await abort(context, error)
        return pb.JoinMemberResponse(members=self._raft.members)

    async def Remove(  # noqa: N802 - the service's name
        self,
        request: pb.RemoveMemberRequest,
        context: grpc.aio.ServicerContext[pb.RemoveMemberRequest, pb.RemoveMemberResponse],
    ) -> pb.RemoveMemberResponse:
        try:
            await self._raft.remove_member(request.node_id)
        except SwarmletError as error:
            await abort(context, error)
        return pb.RemoveMemberResponse()


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: SwarmletError) -> None:
    """Ends a call with an error, telling where the leader is when that is the trouble."""
    if isinstance(error, NotLeader) and error.leader_address:
        context.set_trailing_metadata(((LEADER_TRAILER, error.leader_address),))
    await context.abort(error.code, error.message)


async def join_group(addresses: Sequence[str], member: pb.RaftMember, channels: Channels) -> None:
    """Adds `member` to the group through any of its managers. Raises the last error when none would."""

    async def join(stub: raft_pb2_grpc.RaftMembershipAsyncStub) -> None:
        await stub.Join(pb.JoinMemberRequest(member=member), timeout=JOIN_SECONDS_MAX)

    await _at_leader(addresses, channels, join)


async def leave_group(addresses: Sequence[str], node_id: str, channels: Channels) -> None:
    """Takes a manager's vote away through any of the managers. Raises the last error when none would."""

    async def remove(stub: raft_pb2_grpc.RaftMembershipAsyncStub) -> None:
        await stub.Remove(pb.RemoveMemberRequest(node_id=node_id), timeout=LEAVE_SECONDS_MAX)

    await _at_leader(addresses, channels, remove)


async def _at_leader(
    addresses: Sequence[str],
    channels: Channels,
    call: Callable[[raft_pb2_grpc.RaftMembershipAsyncStub], Awaitable[None]],
) -> None:
    last: SwarmletError = Unavailable("no manager of the swarm is known")
    for address in addresses:
        target = address
        for _ in range(REDIRECTS_MAX):
            try:
                async with channels(target) as channel:
                    await call(raft_pb2_grpc.RaftMembershipStub(channel))
                    return
            except grpc.aio.AioRpcError as error:
                last = from_code(error.code(), error.details() or "")
                leader = _leader_in(error)
                if leader is None or leader == target:
                    break
                target = leader
    raise last


def _leader_in(error: grpc.aio.AioRpcError) -> str | None:
    trailers: Any = error.trailing_metadata() or ()
    return next((str(value) for key, value in trailers if key == LEADER_TRAILER), None)
