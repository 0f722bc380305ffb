"""Who is calling, and whether that role may call this method: checked before every gRPC method.

`RoleInterceptor` stands in front of the server on the mutual-TLS port. What is not
in its table is refused to everybody. Whether the caller may do what it asks *of an
object* (a worker reporting another's task, say) is the method's own business.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog
from cryptography import x509

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument, PermissionDenied, SwarmletError, Unauthenticated
from swarmlet.ca.identity import subject_of
from swarmlet.ca.root import role_name

log = structlog.get_logger(__name__)

Roles = frozenset[pb.NodeRole.ValueType]

MANAGERS: Roles = frozenset({pb.NODE_ROLE_MANAGER})
ANY_ROLE: Roles = frozenset({pb.NODE_ROLE_MANAGER, pb.NODE_ROLE_WORKER})

METHOD_ROLES: Mapping[str, Roles] = {
    "/swarmlet.v1.Raft": MANAGERS,
    "/swarmlet.v1.RaftMembership": MANAGERS,
    "/swarmlet.v1.Control": MANAGERS,
    "/swarmlet.v1.Dispatcher": ANY_ROLE,
    "/swarmlet.v1.Certificates": ANY_ROLE,
}

if TYPE_CHECKING:
    # Generic in the stubs alone; here they are of every message type at once.
    _Context = grpc.aio.ServicerContext[Any, Any]
    _Handler = grpc.RpcMethodHandler[Any, Any]


@dataclass(frozen=True)
class Peer:
    """The node at the other end of a call, as its certificate states."""

    node_id: str
    role: pb.NodeRole.ValueType
    cluster_id: str


def peer_of(context: _Context) -> Peer:
    """Who made this call. Raises Unauthenticated when it came without a node's certificate."""
    return _peer_from_auth(context.auth_context())


class RoleInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses calls of the wrong role, from another cluster or from a removed node.

    `methods` names services ("/package.Service") or single methods
    ("/package.Service/Method", which win) and the roles that may call them.
    `is_removed` is asked at every call, on the event loop. A refusal is
    PERMISSION_DENIED, or UNAUTHENTICATED without a node's certificate. A stream is
    checked when it is opened.
    """

    def __init__(
        self,
        *,
        cluster_id: str,
        is_removed: Callable[[str], bool],
        methods: Mapping[str, Roles] = METHOD_ROLES,
    ) -> None:
        self._cluster_id = cluster_id
        self._is_removed = is_removed
        self._methods = methods

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        method = handler_call_details.method
        allowed = self._allowed(method)
        if not allowed:
            return _refusing(method)
        # None for a method that the server does not have, whatever the stubs say.
        handler: _Handler | None = await continuation(handler_call_details)
        if handler is None:
            return _refusing(method)
        return _guarded(handler, functools.partial(self._check, method, allowed))

    def _allowed(self, method: str) -> Roles:
        service, _, _ = method.rpartition("/")
        return self._methods.get(method, self._methods.get(service, frozenset()))

    async def _check(self, method: str, allowed: Roles, context: _Context) -> None:
        try:
            peer = peer_of(context)
            self._authorize(peer, method, allowed)
        except SwarmletError as error:
            log.warning("call refused", method=method, peer=context.peer(), reason=error.message)
            await context.abort(error.code, error.message)

    def _authorize(self, peer: Peer, method: str, allowed: Roles) -> None:
        if peer.cluster_id != self._cluster_id:
            raise PermissionDenied(f"node {peer.node_id} belongs to another swarm")
        if self._is_removed(peer.node_id):
            raise PermissionDenied(f"node {peer.node_id} was removed from the swarm")
        if peer.role not in allowed:
            raise PermissionDenied(f"node {peer.node_id} ({role_name(peer.role)}) may not call {method}")


def _peer_from_auth(auth: Mapping[str, Any]) -> Peer:
    certificates = list(auth.get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise Unauthenticated("this call needs the certificate of a node of the swarm")
    return _peer_from_certificate(bytes(certificates[0]))


# Every call of a connection shows the same certificate.
@functools.lru_cache(maxsize=1024)
def _peer_from_certificate(pem: bytes) -> Peer:
    try:
        return Peer(*subject_of(x509.load_pem_x509_certificate(pem)))
    except (ValueError, InvalidArgument) as error:
        raise Unauthenticated("the certificate is not one of a node of the swarm") from error


def _refusing(method: str) -> _Handler:
    async def refuse(_requests: AsyncIterator[bytes], context: _Context) -> None:
        log.warning("call refused", method=method, peer=context.peer(), reason="method not served to nodes")
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{method} is not served to nodes")

    # Streaming both ways: answers before a request is read, whichever kind the caller meant.
    return grpc.stream_stream_rpc_method_handler(refuse)


def _guarded(handler: _Handler, check: Callable[[_Context], Awaitable[None]]) -> _Handler:
    """The same handler, run after `check` has let the call pass."""
    behaviour: Any
    guard: Any
    if handler.response_streaming:
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        guard = _guarded_stream(behaviour, check)
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
    else:
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        guard = _guarded_unary(behaviour, check)
        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
    return make(guard, handler.request_deserializer, handler.response_serializer)


def _guarded_unary(behaviour: Any, check: Callable[[_Context], Awaitable[None]]) -> Any:
    async def call(request: Any, context: _Context) -> Any:
        await check(context)
        return await behaviour(request, context)

    return call


def _guarded_stream(behaviour: Any, check: Callable[[_Context], Awaitable[None]]) -> Any:
    async def generate(request: Any, context: _Context) -> AsyncIterator[Any]:
        await check(context)
        async with aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                yield response

    async def write(request: Any, context: _Context) -> None:
        await check(context)
        await behaviour(request, context)

    # gRPC allows both: yield the responses, or context.write() them.
    return generate if inspect.isasyncgenfunction(behaviour) else write
