"""Control on the wire: the servicer that answers gRPC calls, and the caller's side of one call.

Errors cross as a gRPC code and the text that the user sees. Nothing else of gRPC is
known to the rest of control.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio
import structlog

from swarmlet.api import pb
from swarmlet.api.errors import NotLeader, SwarmletError, Unavailable, UnknownOutcome, from_code
from swarmlet.api.v1 import control_pb2_grpc
from swarmlet.api.wire import LEADER_TRAILER, MAJORITY_LOST_TRAILER, STALE_METADATA
from swarmlet.control.interface import ControlInterface
from swarmlet.control.majority import MajorityLost, MajorityLostMeanwhile
from swarmlet.control.terms import Terms

log = structlog.get_logger(__name__)

ANSWER_TRAILER = "swarmlet-answer"
"""On every error that Control itself gave, as against one that gRPC made of a lost connection."""
INTERNAL_ERROR = "internal error; see the daemon's log"
ANSWER_SECONDS_MAX = 0.5
"""Kept of a caller's time so that the reason why there is no answer still reaches him."""

R = TypeVar("R")

if TYPE_CHECKING:
    _Context = grpc.aio.ServicerContext[Any, Any]
    # The generated stubs are typed as if they blocked, also on an asyncio channel.
    UnaryMethod = Callable[..., Awaitable[R]] | grpc.UnaryUnaryMultiCallable[Any, R]
    StreamMethod = Callable[..., AsyncIterator[R]] | grpc.UnaryStreamMultiCallable[Any, R]


class ConnectionLost(Unavailable):
    """The connection broke during the call: it may have been done."""


# ---- the caller's side


async def call(method: UnaryMethod[R], request: object, *, timeout: float | None = None) -> R:
    """One unary call of a stub's method; `timeout` in seconds. Raises SwarmletErrors."""
    try:
        return await cast(Callable[..., Awaitable[R]], method)(request, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def stream(
    method: StreamMethod[R], request: object, *, timeout: float | None = None
) -> AsyncGenerator[R, None]:
    """The responses of a streaming call of a stub's method. Raises SwarmletErrors.

    The call ends with the generator: close it (contextlib.aclosing) when done.
    """
    responses = cast(Callable[..., AsyncIterator[R]], method)(request, timeout=timeout)
    try:
        async for response in responses:
            yield response
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error
    finally:
        if isinstance(responses, grpc.aio.Call):
            responses.cancel()


def error_of(error: grpc.aio.AioRpcError) -> SwarmletError:
    """The error that the other side raised, or what gRPC's own failure means for the caller."""
    # A mapping, whatever the stubs say.
    trailers = dict(cast(Mapping[str, str | bytes], error.trailing_metadata() or {}))
    text = error.details() or ""
    if LEADER_TRAILER in trailers:
        return NotLeader(str(trailers[LEADER_TRAILER]))
    if ANSWER_TRAILER in trailers:
        return from_code(error.code(), text)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        # gRPC's only sign that nothing was sent is this text.
        return Unavailable(text) if "failed to connect" in text else ConnectionLost(text)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnknownOutcome("no answer in time; whether it was done is not known")
    return from_code(error.code(), text)


# ---- the server's side


class ControlServicer(control_pb2_grpc.ControlServicer):
    """Answers with whatever `control` gives, at the moment of a call, for the caller's terms."""

    def __init__(self, control: Callable[[Terms], ControlInterface]) -> None:
        self._control = control

    def _asked(self, context: _Context) -> ControlInterface:
        return self._control(_terms(context))

    async def GetCluster(self, request: pb.GetClusterRequest, context: Any) -> pb.GetClusterResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).get_cluster(request))

    async def UpdateCluster(self, request: pb.UpdateClusterRequest, context: Any) -> pb.UpdateClusterResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).update_cluster(request))

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).list_nodes(request))

    async def GetNode(self, request: pb.GetNodeRequest, context: Any) -> pb.GetNodeResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).get_node(request))

    async def UpdateNode(self, request: pb.UpdateNodeRequest, context: Any) -> pb.UpdateNodeResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).update_node(request))

    async def RemoveNode(self, request: pb.RemoveNodeRequest, context: Any) -> pb.RemoveNodeResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).remove_node(request))

    async def ListServices(self, request: pb.ListServicesRequest, context: Any) -> pb.ListServicesResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).list_services(request))

    async def GetService(self, request: pb.GetServiceRequest, context: Any) -> pb.GetServiceResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).get_service(request))

    async def CreateService(self, request: pb.CreateServiceRequest, context: Any) -> pb.CreateServiceResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).create_service(request))

    async def UpdateService(self, request: pb.UpdateServiceRequest, context: Any) -> pb.UpdateServiceResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).update_service(request))

    async def RemoveService(self, request: pb.RemoveServiceRequest, context: Any) -> pb.RemoveServiceResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).remove_service(request))

    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).list_tasks(request))

    async def GetTask(self, request: pb.GetTaskRequest, context: Any) -> pb.GetTaskResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).get_task(request))

    async def ReadIndex(self, request: pb.ReadIndexRequest, context: Any) -> pb.ReadIndexResponse:  # noqa: N802
        return await _answer(context, lambda: self._asked(context).read_index(request))

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        async with aclosing(_answers(context, lambda: self._asked(context).watch(request))) as responses:
            async for response in responses:
                yield response

    async def ServiceLogs(  # noqa: N802
        self, request: pb.ServiceLogsRequest, context: Any
    ) -> AsyncIterator[pb.ServiceLogsResponse]:
        async with aclosing(
            _answers(context, lambda: self._asked(context).service_logs(request))
        ) as responses:
            async for response in responses:
                yield response


def _terms(context: _Context) -> Terms:
    asked = dict(context.invocation_metadata() or ())
    remaining = context.time_remaining()
    if remaining is None:
        return Terms(is_stale=STALE_METADATA in asked)
    return Terms(is_stale=STALE_METADATA in asked, seconds=remaining - min(ANSWER_SECONDS_MAX, remaining / 2))


async def _answer(context: _Context, ask: Callable[[], Awaitable[R]]) -> R:
    try:
        return await ask()
    except Exception as error:
        await _abort(context, error)
        raise


async def _answers(context: _Context, ask: Callable[[], AsyncGenerator[R, None]]) -> AsyncGenerator[R, None]:
    try:
        # The generator holds a subscription: it must end with the call, not with the garbage.
        async with aclosing(ask()) as responses:
            async for response in responses:
                yield response
    except Exception as error:
        await _abort(context, error)


async def _abort(context: _Context, error: Exception) -> None:
    trailers = [(ANSWER_TRAILER, "1")]
    if isinstance(error, NotLeader):
        trailers.append((LEADER_TRAILER, error.leader_address))
    if isinstance(error, (MajorityLost, MajorityLostMeanwhile)):
        trailers.append((MAJORITY_LOST_TRAILER, "1"))
    context.set_trailing_metadata(tuple(trailers))
    if isinstance(error, SwarmletError):
        await context.abort(error.code, error.message)
    log.error("a control call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, INTERNAL_ERROR)
