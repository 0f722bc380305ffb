"""Who may call what between nodes, over real TLS connections on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import pkgutil
import socket
import ssl
from collections.abc import AsyncIterator
from importlib import import_module

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import serialization

import swarmlet.api.v1
from swarmlet.api import pb
from swarmlet.ca.authorize import ANY_ROLE, MANAGERS, METHOD_ROLES, Peer
from swarmlet.ca.credentials import CHANNEL_OPTIONS, SERVER_OPTIONS, channel, server_credentials
from swarmlet.ca.identity import Identity
from swarmlet.ca.root import MANAGER_NAME, split_certificates
from tests.unit.ca.builders import CLUSTER_ID, MANAGER, WORKER, Cluster
from tests.unit.ca.served import (
    MEMBERSHIP,
    RENEW,
    STREAM_STREAM,
    STREAM_UNARY,
    UNARY,
    UNARY_STREAM,
    UNLISTED,
    Served,
    call,
    refusal,
    serving,
)

CLUSTER = Cluster()
SERVER = CLUSTER.manager("m1")
ANSWERS = {
    UNARY: [b"got a"],
    RENEW: [b"got a"],
    MEMBERSHIP: [b"got a"],
    UNARY_STREAM: [b"got a", b"end"],
    STREAM_UNARY: [b"got a"],
    STREAM_STREAM: [b"got a", b"end"],
}


@contextlib.asynccontextmanager
async def connected(
    served: Served, identity: Identity, *, target: str = MANAGER_NAME
) -> AsyncIterator[grpc.aio.Channel]:
    async with channel(served.address, identity, target=target) as made:
        yield made


@pytest.mark.parametrize("method", ANSWERS)
async def test_manager_may_call_every_method(method: str) -> None:
    async with serving(lambda: SERVER) as served:
        async with connected(served, CLUSTER.manager("m2")) as made:
            answer = await call(made, method)

    assert answer == ANSWERS[method]
    assert served.callers == [(method, Peer("m2", MANAGER, CLUSTER_ID))]


@pytest.mark.parametrize("method", [STREAM_STREAM, RENEW])
async def test_worker_may_call_what_every_node_needs(method: str) -> None:
    async with serving(lambda: SERVER) as served:
        async with connected(served, CLUSTER.worker("w1")) as made:
            answer = await call(made, method)

    assert answer == ANSWERS[method]
    assert served.callers == [(method, Peer("w1", WORKER, CLUSTER_ID))]


@pytest.mark.parametrize("method", [UNARY, UNARY_STREAM, STREAM_UNARY, MEMBERSHIP])
async def test_worker_is_refused_what_managers_do(method: str) -> None:
    async with serving(lambda: SERVER) as served:
        async with connected(served, CLUSTER.worker("w1")) as made:
            code, text = await refusal(made, method)

    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert text == f"node w1 (swarm-worker) may not call {method}"
    assert served.callers == []


@pytest.mark.parametrize("method", [UNLISTED, "/swarmlet.v1.Raft2/Stream", "/swarmlet.v1.Unknown/Method"])
async def test_method_that_no_table_names_is_refused_to_managers_too(method: str) -> None:
    async with serving(lambda: SERVER) as served:
        async with connected(served, CLUSTER.manager("m2")) as made:
            code, text = await refusal(made, method)

    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert text == f"{method} is not served to nodes"
    assert served.callers == []


async def silent() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def test_unlisted_method_is_refused_before_a_stream_sends_anything() -> None:
    async with serving(lambda: SERVER) as served:
        async with connected(served, CLUSTER.manager("m2")) as made:
            stream = made.stream_stream(UNLISTED, None, None)(silent(), timeout=10)
            code = await stream.code()

    assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_listed_method_that_the_server_lacks_is_refused() -> None:
    async with serving(lambda: SERVER) as served:
        async with connected(served, CLUSTER.manager("m2")) as made:
            code, _ = await refusal(made, "/swarmlet.v1.Control/NoSuchMethod")

    assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_table_entry_of_a_method_wins_over_its_service() -> None:
    methods = {"/swarmlet.v1.Control": ANY_ROLE, UNARY: MANAGERS}
    async with serving(lambda: SERVER, methods=methods) as served:
        async with connected(served, CLUSTER.worker("w1")) as made:
            code, _ = await refusal(made, UNARY)
            answer = await call(made, UNARY_STREAM)

    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert answer == ANSWERS[UNARY_STREAM]


@pytest.mark.parametrize("method", [STREAM_STREAM, RENEW])
async def test_removed_node_is_refused_from_its_next_call_on(method: str) -> None:
    removed: set[str] = set()
    async with serving(lambda: SERVER, is_removed=removed.__contains__) as served:
        async with connected(served, CLUSTER.worker("w1")) as made:
            before = await call(made, method)
            removed.add("w1")
            code, text = await refusal(made, method)

    assert before == ANSWERS[method]
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert text == "node w1 was removed from the swarm"


async def test_certificate_for_another_cluster_of_the_same_ca_is_refused() -> None:
    stranger = CLUSTER.identity("m2", MANAGER, cluster_id="anothercluster")
    async with serving(lambda: SERVER) as served:
        async with connected(served, stranger) as made:
            code, text = await refusal(made, RENEW)

    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert text == "node m2 belongs to another swarm"


def with_trust_in(identity: Identity, root_pem: bytes) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=root_pem,
        private_key=identity.key_pem,
        certificate_chain=identity.certificate_pem,
    )


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(
            grpc.ssl_channel_credentials(root_certificates=CLUSTER.root.certificate_pem),
            id="without a certificate",
        ),
        pytest.param(
            with_trust_in(Cluster().manager("m2"), CLUSTER.root.certificate_pem),
            id="with a certificate of another cluster's CA",
        ),
        pytest.param(
            with_trust_in(CLUSTER.expired_manager("m2"), CLUSTER.root.certificate_pem),
            id="with an expired certificate",
        ),
    ],
)
async def test_client_is_refused(client: grpc.ChannelCredentials) -> None:
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", MANAGER_NAME)]
    async with serving(lambda: SERVER) as served:
        async with grpc.aio.secure_channel(served.address, client, options=options) as made:
            code, _ = await refusal(made, RENEW)
        # Nothing but the client was wrong.
        async with connected(served, CLUSTER.manager("m2")) as made:
            answer = await call(made, RENEW)

    assert code is grpc.StatusCode.UNAVAILABLE
    assert answer == ANSWERS[RENEW]
    assert [peer.node_id for _, peer in served.callers] == ["m2"]


async def test_client_without_tls_is_refused() -> None:
    async with serving(lambda: SERVER) as served:
        async with grpc.aio.insecure_channel(served.address) as made:
            code, _ = await refusal(made, RENEW)

    assert code is grpc.StatusCode.UNAVAILABLE
    assert served.callers == []


@pytest.mark.parametrize(
    ("server", "target"),
    [
        pytest.param(CLUSTER.manager("m1"), "m2", id="another node"),
        pytest.param(CLUSTER.worker("w1"), MANAGER_NAME, id="a worker for a manager"),
        pytest.param(Cluster().manager("m1"), "m1", id="another CA"),
        pytest.param(CLUSTER.expired_manager("m1"), "m1", id="an expired certificate"),
    ],
)
async def test_server_that_is_not_the_target_is_refused(server: Identity, target: str) -> None:
    async with serving(lambda: server) as served:
        async with connected(served, CLUSTER.manager("m3"), target=target) as made:
            code, _ = await refusal(made, RENEW)

    assert code is grpc.StatusCode.UNAVAILABLE
    assert served.callers == []


@pytest.mark.parametrize("target", ["m1", MANAGER_NAME])
async def test_server_is_known_by_its_id_and_by_its_role(target: str) -> None:
    async with serving(lambda: SERVER) as served:
        async with connected(served, CLUSTER.worker("w1"), target=target) as made:
            answer = await call(made, RENEW)

    assert answer == ANSWERS[RENEW]


def leaf_der(identity: Identity) -> bytes:
    return split_certificates(identity.certificate_pem)[0].public_bytes(serialization.Encoding.DER)


def shown_certificate(address: str) -> bytes:
    """The leaf that a server shows in a fresh handshake (DER)."""
    host, _, port = address.partition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        with context.wrap_socket(raw) as wrapped:
            return wrapped.getpeercert(binary_form=True) or b""


async def test_running_server_takes_up_a_renewed_identity_and_keeps_its_connections() -> None:
    first, renewed = CLUSTER.manager("m1"), CLUSTER.manager("m1")
    current = [first]
    async with serving(lambda: current[0]) as served:
        async with connected(served, CLUSTER.worker("w1")) as held:
            await call(held, RENEW)
            before = await asyncio.to_thread(shown_certificate, served.address)
            current[0] = renewed
            after = await asyncio.to_thread(shown_certificate, served.address)
            answer = await call(held, RENEW)
            async with connected(served, CLUSTER.worker("w2")) as fresh:
                fresh_answer = await call(fresh, RENEW)

    assert before == leaf_der(first)
    assert after == leaf_der(renewed)
    assert answer == fresh_answer == ANSWERS[RENEW]


async def test_running_server_takes_up_another_root() -> None:
    other = Cluster()
    current = [CLUSTER.manager("m1")]
    async with serving(lambda: current[0]) as served:
        current[0] = other.manager("m1")
        async with connected(served, other.worker("w1")) as made:
            answer = await call(made, RENEW)
        async with connected(served, CLUSTER.worker("w1")) as made:
            code, _ = await refusal(made, RENEW)

    assert answer == ANSWERS[RENEW]
    assert code is grpc.StatusCode.UNAVAILABLE


async def test_server_goes_on_when_its_identity_cannot_be_had_for_a_while() -> None:
    identity = CLUSTER.manager("m1")
    is_failing = False

    def source() -> Identity:
        if is_failing:
            raise RuntimeError("between two identities")
        return identity

    async with serving(source) as served:
        is_failing = True
        async with connected(served, CLUSTER.worker("w1")) as made:
            answer = await call(made, RENEW)

    assert answer == ANSWERS[RENEW]


async def test_two_servers_cannot_share_a_port() -> None:
    async with serving(lambda: SERVER) as served:
        second = grpc.aio.server(options=list(SERVER_OPTIONS))

        with pytest.raises(RuntimeError):
            second.add_secure_port(served.address, server_credentials(lambda: CLUSTER.manager("m2")))


def test_every_service_is_in_the_table_but_the_local_one() -> None:
    served = set()
    for module in pkgutil.iter_modules(swarmlet.api.v1.__path__):
        if module.name.endswith("_pb2"):
            descriptor = import_module(f"swarmlet.api.v1.{module.name}").DESCRIPTOR
            served |= {f"/{service.full_name}" for service in descriptor.services_by_name.values()}

    assert served - set(METHOD_ROLES) == {"/swarmlet.v1.LocalSwarm"}
    assert set(METHOD_ROLES) <= served
    assert all(pb.NODE_ROLE_MANAGER in roles for roles in METHOD_ROLES.values())
