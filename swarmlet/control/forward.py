"""The door on every manager: reads from its own state, writes done by whoever leads.

A write is repeated, with the same operation id, until a leader has answered or the
deadline is over; the store sees to it that it is done once. After a write done
elsewhere the caller is held until it is visible here, so that he reads what he wrote.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar, cast

import structlog

from swarmlet.api import pb
from swarmlet.api.errors import NotLeader, SwarmletError, Unavailable, UnknownOutcome
from swarmlet.api.ids import new_id
from swarmlet.control.control import Control
from swarmlet.control.grpc import ConnectionLost, call, stream
from swarmlet.raft.agreement import Agreement

log = structlog.get_logger(__name__)

DEADLINE_SECONDS = 10.0
PAUSE_SECONDS = 0.2
"""Longest wait for news of a leader before the one that is known is asked again, or looked away from."""
APPLIED_SECONDS = 5.0
"""Longest wait for a write that is done to be visible here."""

NO_LEADER = (
    "The swarm does not have a leader. It's possible that too few managers are online. "
    "Make sure more than half of the managers are online."
)
OUTCOME_UNKNOWN = (
    "No answer from the swarm's leader: whether the change was made is not known. Look before you repeat it."
)

Connect = Callable[[pb.RaftMember], Any]
"""A manager to a Control stub (generated, or anything with its methods) that reaches it."""

_RETRIED = (NotLeader, Unavailable, UnknownOutcome)
_FIRST_CAPITALS = re.compile(r"(?<!^)([A-Z])")

M = TypeVar(
    "M",
    pb.UpdateClusterRequest,
    pb.UpdateNodeRequest,
    pb.RemoveNodeRequest,
    pb.CreateServiceRequest,
    pb.UpdateServiceRequest,
    pb.RemoveServiceRequest,
)


class ForwardingControl:
    """Control as users meet it on one manager. Calls may run at the same time."""

    def __init__(
        self, control: Control, *, agreement: Agreement, connect: Connect, rng: random.Random
    ) -> None:
        self._control = control
        self._agreement = agreement
        self._connect = connect
        self._rng = rng

    # ---- reads, from this manager's state

    async def get_cluster(self, request: pb.GetClusterRequest) -> pb.GetClusterResponse:
        return await self._control.get_cluster(request)

    async def list_nodes(self, request: pb.ListNodesRequest) -> pb.ListNodesResponse:
        return await self._control.list_nodes(request)

    async def get_node(self, request: pb.GetNodeRequest) -> pb.GetNodeResponse:
        return await self._control.get_node(request)

    async def list_services(self, request: pb.ListServicesRequest) -> pb.ListServicesResponse:
        return await self._control.list_services(request)

    async def get_service(self, request: pb.GetServiceRequest) -> pb.GetServiceResponse:
        return await self._control.get_service(request)

    async def list_tasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        return await self._control.list_tasks(request)

    async def get_task(self, request: pb.GetTaskRequest) -> pb.GetTaskResponse:
        return await self._control.get_task(request)

    def watch(self, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        return self._control.watch(request)

    # ---- writes, by the leader

    async def update_cluster(self, request: pb.UpdateClusterRequest) -> pb.UpdateClusterResponse:
        return cast(pb.UpdateClusterResponse, await self._write("UpdateCluster", request))

    async def update_node(self, request: pb.UpdateNodeRequest) -> pb.UpdateNodeResponse:
        return cast(pb.UpdateNodeResponse, await self._write("UpdateNode", request))

    async def remove_node(self, request: pb.RemoveNodeRequest) -> pb.RemoveNodeResponse:
        return cast(pb.RemoveNodeResponse, await self._write("RemoveNode", request))

    async def create_service(self, request: pb.CreateServiceRequest) -> pb.CreateServiceResponse:
        return cast(pb.CreateServiceResponse, await self._write("CreateService", request))

    async def update_service(self, request: pb.UpdateServiceRequest) -> pb.UpdateServiceResponse:
        return cast(pb.UpdateServiceResponse, await self._write("UpdateService", request))

    async def remove_service(self, request: pb.RemoveServiceRequest) -> pb.RemoveServiceResponse:
        return cast(pb.RemoveServiceResponse, await self._write("RemoveService", request))

    async def service_logs(
        self, request: pb.ServiceLogsRequest
    ) -> AsyncGenerator[pb.ServiceLogsResponse, None]:
        """The leader's. Once lines have come, a leader that is lost ends the stream with Unavailable."""
        deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        seen = 0
        has_begun = False
        while True:
            try:
                async with aclosing(self._leader_logs(request)) as responses:
                    async for response in responses:
                        has_begun = True
                        yield response
                return
            except _RETRIED as error:
                if has_begun:
                    raise Unavailable("the manager that collected the logs was lost; ask again") from error
                seen = await self._pause(seen, deadline, is_uncertain=False)

    def _leader_logs(self, request: pb.ServiceLogsRequest) -> AsyncGenerator[pb.ServiceLogsResponse, None]:
        if self._agreement.is_leader:
            return self._control.service_logs(request)
        return stream(self._connect(self._other_leader()).ServiceLogs, request)

    # ---- the way to the leader

    async def _write(self, method: str, request: M) -> object:
        asked = type(request)()
        asked.CopyFrom(request)
        asked.operation_id = request.operation_id or new_id(self._rng)
        deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        is_uncertain = False
        seen = 0
        while True:
            try:
                response = await self._attempt(method, asked, deadline)
                break
            except _RETRIED as error:
                is_uncertain |= isinstance(error, (UnknownOutcome, ConnectionLost))
                log.debug("a write is tried again", method=method, reason=error.message)
            seen = await self._pause(seen, deadline, is_uncertain=is_uncertain)
        await self._wait_applied(response.index)
        return response

    async def _attempt(self, method: str, request: object, deadline: float) -> Any:
        if not self._agreement.is_leader:
            return await self._attempt_elsewhere(self._other_leader(), method, request, deadline)
        try:
            async with asyncio.timeout_at(deadline):
                local = _FIRST_CAPITALS.sub(r"_\1", method).lower()
                return await getattr(self._control, local)(request)
        except TimeoutError:
            raise UnknownOutcome(OUTCOME_UNKNOWN) from None

    async def _attempt_elsewhere(
        self, leader: pb.RaftMember, method: str, request: object, deadline: float
    ) -> Any:
        """Asks `leader`, but only until another one is known: it may be gone without a sign."""
        remaining = max(deadline - asyncio.get_running_loop().time(), 0.001)
        stub_method = getattr(self._connect(leader), method)
        answer = asyncio.ensure_future(call(stub_method, request, timeout=remaining))
        waits: list[asyncio.Future[Any]] = [answer]
        try:
            # Nearly every answer comes before it is worth looking out for another leader.
            await asyncio.wait(waits, timeout=PAUSE_SECONDS)
            if not answer.done():
                waits.append(asyncio.ensure_future(self._is_succeeded(leader)))
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise UnknownOutcome("another manager leads now")
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _is_succeeded(self, leader: pb.RaftMember) -> None:
        """Returns once a manager other than `leader` leads."""
        seen = 0
        while True:
            current = self._agreement.leader
            if current is not None and current.node_id != leader.node_id:
                return
            seen = await self._agreement.leadership(seen)

    def _other_leader(self) -> pb.RaftMember:
        leader = self._agreement.leader
        if leader is None or leader.node_id == self._agreement.node_id:
            # Elected, but not yet up to date; or nobody is.
            raise NotLeader
        return leader

    async def _pause(self, seen: int, deadline: float, *, is_uncertain: bool) -> int:
        """Waits for news of the leadership, or a little. Raises what the user is told after the deadline."""
        now = asyncio.get_running_loop().time()
        if now >= deadline:
            raise UnknownOutcome(OUTCOME_UNKNOWN) if is_uncertain else Unavailable(NO_LEADER)
        try:
            async with asyncio.timeout_at(min(now + PAUSE_SECONDS, deadline)):
                return await self._agreement.leadership(seen)
        except TimeoutError:
            return seen

    async def _wait_applied(self, index: int) -> None:
        try:
            async with asyncio.timeout(APPLIED_SECONDS):
                await self._agreement.wait_applied(index)
        except (TimeoutError, SwarmletError):
            # It is done; that this manager lags behind must not make it look undone.
            log.warning("a write is not visible here yet", index=index)
