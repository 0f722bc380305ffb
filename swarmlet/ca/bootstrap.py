"""How a machine without a certificate gets one: two HTTPS requests beside the cluster's port.

gRPC in Python can neither make a client certificate optional nor connect without
verifying, so joining has a port of its own, the cluster's port + 1. TLS 1.3, the
messages of ca.proto as bodies:

    GET  /v1/root-certificate                          -> GetRootCertificateResponse
    POST /v1/certificate       IssueCertificateRequest -> IssueCertificateResponse

The joiner first reads the root without trusting anybody and compares it with the
digest in its token; only then, on a second connection that is verified against that
root, it sends the token and a certificate request. Its key stays where it was made.
Errors travel as HTTP status, gRPC code (a header) and text; no log and no error
shows a token. `node` runs the server on managers and calls `join`; whether a token
is good, and what the new node is called, is decided by whoever gives `issue`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import os
import ssl
import traceback
from collections.abc import Awaitable, Callable

import aiohttp
import grpc
import structlog
from aiohttp import web
from google.protobuf.message import DecodeError

from swarmlet.api import pb
from swarmlet.api.addresses import split_address
from swarmlet.api.errors import (
    InvalidArgument,
    PermissionDenied,
    SwarmletError,
    Unauthenticated,
    Unavailable,
    from_code,
)
from swarmlet.ca import tokens
from swarmlet.ca.identity import Identity, new_key_and_csr
from swarmlet.ca.root import MANAGER_NAME, join_certificates, root_digest, split_certificates

log = structlog.get_logger(__name__)

# Docker's, when an address to join names no port.
PORT_OFFSET = 1
BODY_BYTES_MAX = 64 * 1024

ROOT_CERTIFICATE_PATH = "/v1/root-certificate"
CERTIFICATE_PATH = "/v1/certificate"

_CODE_HEADER = "Swarmlet-Code"
_CONTENT_TYPE = "application/x-protobuf"
# Whoever holds the port open without asking anything is cut off.
_HANDSHAKE_SECONDS = 5.0
_CONNECTION_SECONDS = 30.0
_SHUTDOWN_SECONDS = 2.0
# Guesses at a token: a burst per address, then one a second.
_FAILURES_BURST = 10
_FAILURES_PER_SECOND = 1.0
_FAILURES_PEERS_MAX = 4096
_ERROR_TEXT_MAX = 500

Issue = Callable[[pb.IssueCertificateRequest, str], Awaitable[pb.IssueCertificateResponse]]


class BootstrapServer:
    """The manager's side. `issue` gets the request and the peer's IP address, and raises SwarmletErrors.

    `identity_source` is asked at every handshake, so a renewed identity is shown at once.
    """

    def __init__(self, identity_source: Callable[[], Identity], issue: Issue) -> None:
        self._identity_source = identity_source
        self._issue = issue
        self._failures = _FailureLimit()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port (useful when 0 was asked for). Raises Unavailable when it is taken."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_get(ROOT_CERTIFICATE_PATH, self._get_root)
        app.router.add_post(CERTIFICATE_PATH, self._post_certificate)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_silent_logger(),
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        await runner.setup()
        loop = asyncio.get_running_loop()
        handlers = runner.server
        assert handlers is not None

        def accept() -> asyncio.Protocol:
            handler = handlers()
            loop.call_later(_CONNECTION_SECONDS, handler.force_close)
            return handler

        try:
            self._server = await loop.create_server(
                accept,
                host,
                port,
                ssl=_rotating_server_context(self._identity_source),
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
            )
        except OSError as error:
            await runner.cleanup()
            raise Unavailable(
                f"cannot listen on {host}:{port} for joining nodes: {error.strerror or error}"
            ) from error
        self._runner = runner
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stops listening and ends what is under way. May be called again, or without a start."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _get_root(self, _request: web.Request) -> web.Response:
        return _answer(pb.GetRootCertificateResponse(certificate_pem=self._identity_source().root_pem))

    async def _post_certificate(self, request: web.Request) -> web.Response:
        peer = _peer_ip(request)
        now = asyncio.get_running_loop().time()
        wait_seconds = self._failures.wait_seconds(peer, now)
        if wait_seconds > 0:
            text = f"too many failed attempts to join from {peer}; try again in {math.ceil(wait_seconds)} s"
            return _refusal(429, grpc.StatusCode.UNAVAILABLE, text)
        try:
            response = await self._issue(await _read_request(request), peer)
        except SwarmletError as error:
            if isinstance(error, (InvalidArgument, Unauthenticated, PermissionDenied)):
                self._failures.note(peer, now)
            log.warning("join refused", peer=peer, reason=error.message)
            return _refusal(error.http_status, error.code, error.message)
        except Exception as error:
            # Formatted here: a log renderer may show local variables, and the token is among them.
            trace = "".join(traceback.format_exception(error))
            log.error("join failed", peer=peer, trace=trace)
            return _refusal(500, grpc.StatusCode.INTERNAL, "internal error; see the manager's log")
        return _answer(response)


async def join(
    address: str,
    token: str,
    *,
    availability: pb.NodeAvailability.ValueType = pb.NODE_AVAILABILITY_ACTIVE,
    hostname: str = "",
    advertise_address: str = "",
    timeout_seconds: float = 10.0,
) -> tuple[Identity, pb.IssueCertificateResponse]:
    """Gets this machine an identity from the manager at `address` (HOST:PORT of the cluster's port).

    Raises InvalidArgument for a token or address that cannot be one, Unauthenticated
    when the manager is not of the token's cluster (it then has not seen the token),
    Unavailable when it cannot be reached or does not answer in time, and what the
    manager raised.
    """
    parsed = tokens.parse(token)
    host, port = split_address(address)
    if port + PORT_OFFSET > 65535:
        raise InvalidArgument(f"invalid address {address!r}: nodes join at the port after {port}")
    client = _Client(host, port + PORT_OFFSET, shown_as=address.strip())
    try:
        async with asyncio.timeout(timeout_seconds):
            root_pem = await client.trusted_root(parsed.digest)
            key_pem, csr_pem = new_key_and_csr()
            response = await client.issue(
                root_pem,
                pb.IssueCertificateRequest(
                    token=token.strip(),
                    csr_pem=csr_pem,
                    availability=availability,
                    hostname=hostname,
                    advertise_address=advertise_address,
                ),
            )
    except TimeoutError as error:
        raise Unavailable(
            f"the manager at {address} did not answer within {timeout_seconds:g} s; {client.what_to_check}"
        ) from error
    return _verified(address, response, key_pem, root_pem), response


class _Client:
    """The joiner's two requests to one manager; every error names the address that the user gave."""

    def __init__(self, host: str, port: int, *, shown_as: str) -> None:
        self._base = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._address = shown_as
        self.what_to_check = (
            "check the address, that a manager runs there, and that its TCP ports "
            f"{port - PORT_OFFSET} and {port} can be reached from here"
        )

    async def trusted_root(self, digest: str) -> bytes:
        """The manager's root certificate, once it matches the digest."""
        body = await self._call("GET", ROOT_CERTIFICATE_PATH, _unverified_context(), None, secret="")
        try:
            received = pb.GetRootCertificateResponse.FromString(body).certificate_pem
            root_pem = join_certificates(split_certificates(received))
        except (DecodeError, ValueError) as error:
            raise self._not_a_manager() from error
        if (got := root_digest(root_pem)) != digest:
            raise Unauthenticated(
                f"remote CA does not match fingerprint. Expected: {digest}, got {got}. "
                f"The token belongs to another swarm than the manager at {self._address}, "
                "or someone stands between"
            )
        return root_pem

    async def issue(
        self, root_pem: bytes, request: pb.IssueCertificateRequest
    ) -> pb.IssueCertificateResponse:
        body = await self._call(
            "POST",
            CERTIFICATE_PATH,
            _verifying_context(root_pem),
            request.SerializeToString(),
            secret=request.token,
        )
        try:
            return pb.IssueCertificateResponse.FromString(body)
        except DecodeError as error:
            raise self._not_a_manager() from error

    async def _call(
        self, method: str, path: str, context: ssl.SSLContext, body: bytes | None, *, secret: str
    ) -> bytes:
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=context, force_close=True),
                    # The caller's timeout spans both requests.
                    timeout=aiohttp.ClientTimeout(total=None),
                    # A small answer must not unfold into a large one.
                    auto_decompress=False,
                ) as session,
                session.request(
                    method,
                    self._base + path,
                    data=body,
                    headers={"Content-Type": _CONTENT_TYPE} if body is not None else None,
                    # Managers are known by their role, which is in their certificate, not by their address.
                    server_hostname=MANAGER_NAME,
                    allow_redirects=False,
                ) as response,
            ):
                received = await _read_bounded(response.content)
                status, code = response.status, response.headers.get(_CODE_HEADER)
        except aiohttp.ClientConnectorCertificateError as error:
            raise Unauthenticated(
                f"the manager at {self._address} could not prove that it is one of the token's swarm "
                f"({_verification_failure(error.certificate_error)}); the token was not sent. "
                "Check the address, and that the clocks of both machines agree"
            ) from error
        except (aiohttp.ClientConnectorSSLError, ssl.SSLError) as error:
            raise self._not_a_manager() from error
        except aiohttp.ClientConnectorError as error:
            reason = error.os_error.strerror or str(error.os_error)
            raise Unavailable(
                f"cannot connect to the manager at {self._address}: {reason}; {self.what_to_check}"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._not_a_manager() from error
        if received is None:
            raise self._not_a_manager()
        if status == 200:
            return received
        raise self._raised(code, received, secret)

    def _raised(self, code_name: str | None, body: bytes, secret: str) -> SwarmletError:
        code = next((c for c in grpc.StatusCode if c.name == code_name), None)
        if code is None:
            return self._not_a_manager()
        text = body.decode("utf-8", "replace")
        if secret:
            text = text.replace(secret, "(token)").replace(secret.rpartition("-")[2], "(secret)")
        return from_code(code, "".join(c for c in text if c.isprintable())[:_ERROR_TEXT_MAX])

    def _not_a_manager(self) -> Unavailable:
        return Unavailable(f"what answers at {self._address} is not a Swarmlet manager; {self.what_to_check}")


class _FailureLimit:
    """How many failed attempts an address has left: a token bucket each, for a bounded number of them."""

    def __init__(self) -> None:
        # Address -> (failures not yet forgiven, when counted), the most recent last.
        self._failures: dict[str, tuple[float, float]] = {}

    def wait_seconds(self, peer: str, now: float) -> float:
        """0 when the address may try; otherwise how long until it may."""
        over = self._count(peer, now) + 1 - _FAILURES_BURST
        return max(0.0, over / _FAILURES_PER_SECOND)

    def note(self, peer: str, now: float) -> None:
        count = self._count(peer, now) + 1
        self._failures.pop(peer, None)
        self._failures[peer] = (count, now)
        if len(self._failures) > _FAILURES_PEERS_MAX:
            del self._failures[next(iter(self._failures))]

    def _count(self, peer: str, now: float) -> float:
        count, at = self._failures.get(peer, (0.0, now))
        return max(0.0, count - (now - at) * _FAILURES_PER_SECOND)


def _verified(
    address: str, response: pb.IssueCertificateResponse, key_pem: bytes, root_pem: bytes
) -> Identity:
    try:
        identity = Identity.from_pem(
            certificate_pem=response.certificate_pem, key_pem=key_pem, root_pem=root_pem
        )
    except InvalidArgument as error:
        raise Unavailable(
            f"the manager at {address} answered with a certificate of no use: {error}"
        ) from error
    stated = (response.node_id, response.role, response.cluster_id)
    if (identity.node_id, identity.role, identity.cluster_id) != stated:
        raise Unavailable(f"the manager at {address} answered with the certificate of another node")
    return identity


def _unverified_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _verifying_context(root_pem: bytes) -> ssl.SSLContext:
    """Takes only servers whose certificate is of this root and of a manager (by its alternative name)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=root_pem.decode("ascii"))
    return context


def _rotating_server_context(identity_source: Callable[[], Identity]) -> ssl.SSLContext:
    """A context that shows the identity of the moment: a listening socket cannot be given another context."""
    shown = identity_source()
    current = _server_context(shown)

    def choose(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
        nonlocal shown, current
        identity = identity_source()
        if identity != shown:
            shown, current = identity, _server_context(identity)
        connection.context = current

    # Called in every handshake, also when the client names no server.
    entrance = _server_context(shown)
    entrance.sni_callback = choose
    return entrance


def _server_context(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    # OpenSSL's Python binding reads keys from files only; this one is in memory.
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(identity.key_pem + identity.certificate_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    return context


async def _read_request(request: web.Request) -> pb.IssueCertificateRequest:
    try:
        return pb.IssueCertificateRequest.FromString(await request.read())
    except web.HTTPRequestEntityTooLarge as error:
        raise InvalidArgument(f"the request is larger than {BODY_BYTES_MAX} bytes") from error
    except DecodeError as error:
        raise InvalidArgument("the request is not an IssueCertificateRequest") from error


async def _read_bounded(content: aiohttp.StreamReader) -> bytes | None:
    """Everything, or None when it is more than a manager ever answers."""
    received = bytearray()
    async for chunk in content.iter_any():
        received += chunk
        if len(received) > BODY_BYTES_MAX:
            return None
    return bytes(received)


def _silent_logger() -> logging.Logger:
    # aiohttp logs a traceback with the bytes of every malformed request: a stranger could
    # fill the log with them, or have a mistyped token in it. What matters is logged here.
    logger = logging.getLogger(f"{__name__}.http")
    logger.setLevel(logging.CRITICAL + 1)
    return logger


def _answer(message: pb.GetRootCertificateResponse | pb.IssueCertificateResponse) -> web.Response:
    return web.Response(body=message.SerializeToString(), content_type=_CONTENT_TYPE)


def _refusal(status: int, code: grpc.StatusCode, text: str) -> web.Response:
    return web.Response(status=status, text=text, headers={_CODE_HEADER: code.name})


def _verification_failure(error: Exception) -> str:
    return error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else "wrong certificate"


def _peer_ip(request: web.Request) -> str:
    remote = (request.remote or "").partition("%")[0]
    try:
        address = ipaddress.ip_address(remote)
    except ValueError:
        return remote
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
