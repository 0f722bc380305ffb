"""Mutual TLS for gRPC: what servers show and ask for, and channels that know whom they expect.

Every port and every connection between nodes is made with what is here. Who may
call what is decided in `authorize`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import grpc
import grpc.aio
import structlog

from swarmlet.api.wire import MESSAGE_OPTIONS
from swarmlet.ca.identity import Identity

log = structlog.get_logger(__name__)

KEEPALIVE_PERIOD_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 3_000

Options = Sequence[tuple[str, int]]

_BOTH_SIDES: Options = (
    *MESSAGE_OPTIONS,
    ("grpc.keepalive_time_ms", KEEPALIVE_PERIOD_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

CHANNEL_OPTIONS: Options = (
    *_BOTH_SIDES,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Despite its name the time that one attempt to connect may take; the default of
    # 20 s would outlast a cut that was healed meanwhile.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # Nodes speak to each other directly, whatever https_proxy says.
    ("grpc.enable_http_proxy", 0),
)

SERVER_OPTIONS: Options = (
    *_BOTH_SIDES,
    # Clients ping every 10 s; a server that expects fewer would cut them off.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_PERIOD_MS // 2),
    # A second daemon on the same port must fail to start instead of sharing it.
    ("grpc.so_reuseport", 0),
)


def server_credentials(identity_source: Callable[[], Identity]) -> grpc.ServerCredentials:
    """Mutual TLS for a server whose identity may be renewed while it runs.

    `identity_source` is asked at every handshake, from gRPC's own threads: it must
    be thread-safe and fast (returning an attribute is). A client without a
    certificate of the identity's root is refused. Held connections live on.
    """
    lock = threading.Lock()
    shown = identity_source()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        # gRPC goes on with the former certificate when it is given None or an exception.
        identity = identity_source()
        with lock:
            if identity == shown:
                return None
            shown = identity
        log.info("server certificate replaced", node_id=identity.node_id, not_after=str(identity.not_after))
        return _configuration(identity)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(shown),
        # The stubs do not know that None means "no change".
        fetch,  # type: ignore[arg-type]
        require_client_authentication=True,
    )


def channel(address: str, identity: Identity, *, target: str) -> grpc.aio.Channel:
    """A channel to `address` (host:port) on which only `target` is accepted as the server.

    Target: a node id, or root.MANAGER_NAME when any manager will do. The channel
    keeps the identity that it was made with: make a new one when that is renewed.
    Nothing is connected yet.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=identity.root_pem,
        private_key=identity.key_pem,
        certificate_chain=identity.certificate_pem,
    )
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", target)]
    return grpc.aio.secure_channel(address, credentials, options=options)


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem, identity.certificate_pem)], root_certificates=identity.root_pem
    )
