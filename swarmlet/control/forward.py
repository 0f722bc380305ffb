"""The door on every manager: reads from its own state once that is new, writes done by whoever leads.

A read waits until this manager has applied everything that was done before the read was
asked for; only the leader, sure that it still leads, can say up to where that is.

A write is repeated, with the same operation id, until a leader has answered or the
deadline is over; the store sees to it that it is done once. After a write done
elsewhere the caller is held until it is visible here, so that he reads what he wrote.
"""

from __future__ import annotations

import asyncio
import copy
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
from swarmlet.control.majority import is_certainly_lost, no_leader
from swarmlet.control.terms import PLAIN, Terms
from swarmlet.raft.agreement import Agreement

log = structlog.get_logger(__name__)

DEADLINE_SECONDS = 10.0
PAUSE_SECONDS = 0.2
"""Longest wait for news of a leader before the one that is known is asked again, or looked away from."""
APPLIED_SECONDS = 5.0
"""Longest wait for a write that is done to be visible here."""

LAGS_BEHIND = (
    "This manager has not caught up with the swarm's leader in time; try again or ask another manager. "
    "--stale shows its last known state"
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
    """Control as users meet it on one manager. Calls may run at the same time.

    All but what the leader itself refuses ends within DEADLINE_SECONDS, or sooner by the
    caller's terms: in Unavailable or UnknownOutcome and the words of `majority`.
    """

    def __init__(
        self, control: Control, *, agreement: Agreement, connect: Connect, rng: random.Random
    ) -> None:
        self._control = control
        self._agreement = agreement
        self._connect = connect
        self._rng = rng
        self._terms = PLAIN

    def under(self, terms: Terms) -> ForwardingControl:
        """The same door for a caller with these terms."""
        door = copy.copy(self)
        door._terms = terms
        return door

    # ---- reads, from this manager's state

    async def get_cluster(self, request: pb.GetClusterRequest) -> pb.GetClusterResponse:
        await self.be_current()
        return await self._control.get_cluster(request)

    async def list_nodes(self, request: pb.ListNodesRequest) -> pb.ListNodesResponse:
        await self.be_current()
        return await self._control.list_nodes(request)

    async def get_node(self, request: pb.GetNodeRequest) -> pb.GetNodeResponse:
        await self.be_current()
        return await self._control.get_node(request)

    async def list_services(self, request: pb.ListServicesRequest) -> pb.ListServicesResponse:
        await self.be_current()
        return await self._control.list_services(request)

    async def get_service(self, request: pb.GetServiceRequest) -> pb.GetServiceResponse:
        await self.be_current()
        return await self._control.get_service(request)

    async def list_tasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        await self.be_current()
        return await self._control.list_tasks(request)

    async def get_task(self, request: pb.GetTaskRequest) -> pb.GetTaskResponse:
        await self.be_current()
        return await self._control.get_task(request)

    async def watch(self, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        await self.be_current()
        async with aclosing(self._control.watch(request)) as responses:
            async for response in responses:
                yield response

    async def read_index(self, request: pb.ReadIndexRequest) -> pb.ReadIndexResponse:
        return pb.ReadIndexResponse(index=await self._agreed_index(self._deadline()))

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
        deadline = self._deadline()
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

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + min(DEADLINE_SECONDS, self._terms.seconds)

    async def be_current(self) -> None:
        """Returns once the state here is at least as new as the moment of the call."""
        if self._terms.is_stale:
            return
        deadline = self._deadline()
        index = await self._agreed_index(deadline)
        try:
            async with asyncio.timeout_at(deadline):
                await self._agreement.wait_applied(index)
        except TimeoutError:
            raise Unavailable(LAGS_BEHIND) from None

    async def _agreed_index(self, deadline: float) -> int:
        """Up to where the log was done at the moment of the call, by whoever leads."""
        seen = 0
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._ask_index(deadline)
            except TimeoutError:
                log.debug("nobody said in time how new a read must be")
            except _RETRIED as error:
                log.debug("a read is tried again", reason=error.message)
            seen = await self._pause(seen, deadline, is_uncertain=False)

    async def _ask_index(self, deadline: float) -> int:
        request = pb.ReadIndexRequest()
        if self._agreement.is_leader:
            return (await self._control.read_index(request)).index
        leader = self._other_leader()
        answer = await self._attempt_elsewhere(leader, "ReadIndex", request, deadline, is_read=True)
        return int(answer.index)

    async def _write(self, method: str, request: M) -> object:
        asked = type(request)()
        asked.CopyFrom(request)
        asked.operation_id = request.operation_id or new_id(self._rng)
        deadline = self._deadline()
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
            raise no_leader(self._agreement, self._control.hostname_of, is_uncertain=True) from None

    async def _attempt_elsewhere(
        self, leader: pb.RaftMember, method: str, request: object, deadline: float, *, is_read: bool = False
    ) -> Any:
        """Asks `leader`, but only until another one is known: it may be gone without a sign.

        What is only read can be asked again, so it is not waited for while nobody leads.
        """
        remaining = max(deadline - asyncio.get_running_loop().time(), 0.001)
        stub_method = getattr(self._connect(leader), method)
        answer = asyncio.ensure_future(call(stub_method, request, timeout=remaining))
        waits: list[asyncio.Future[Any]] = [answer]
        try:
            # Nearly every answer comes before it is worth looking out for another leader.
            await asyncio.wait(waits, timeout=PAUSE_SECONDS)
            if not answer.done():
                waits.append(asyncio.ensure_future(self._is_succeeded(leader, by_nobody=is_read)))
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise UnknownOutcome("another manager leads now")
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _is_succeeded(self, leader: pb.RaftMember, *, by_nobody: bool) -> None:
        """Returns once a manager other than `leader` leads, or also, with `by_nobody`, none."""
        seen = 0
        while True:
            current = self._agreement.leader
            if by_nobody if current is None else current.node_id != leader.node_id:
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
        if now >= deadline or is_certainly_lost(self._agreement):
            raise no_leader(self._agreement, self._control.hostname_of, is_uncertain=is_uncertain)
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
