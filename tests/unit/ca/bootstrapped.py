"""A bootstrap server on loopback, and who signs for it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

from swarmlet.api import errors, pb
from swarmlet.ca import tokens
from swarmlet.ca.bootstrap import (
    BootstrapServer,
)
from swarmlet.ca.identity import Identity
from tests.unit.ca.builders import CLUSTER_ID, Cluster

CLUSTER = Cluster()
SERVER = CLUSTER.manager("m1")
TOKEN = tokens.generate(CLUSTER.root.digest(), random.Random(1))
MANAGER_TOKEN = tokens.generate(CLUSTER.root.digest(), random.Random(2))
SECRET = TOKEN.rpartition("-")[2]

Issue = Callable[[pb.IssueCertificateRequest, str], Awaitable[pb.IssueCertificateResponse]]


class Issuer:
    """Signs whoever brings one of the tokens, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[pb.IssueCertificateRequest, str]] = []

    async def __call__(self, request: pb.IssueCertificateRequest, peer: str) -> pb.IssueCertificateResponse:
        self.requests.append((request, peer))
        role = tokens.role_for(request.token, pb.JoinTokens(worker=TOKEN, manager=MANAGER_TOKEN))
        if role is None:
            raise errors.Unauthenticated("a valid join token is necessary to join this cluster")
        return pb.IssueCertificateResponse(
            node_id="n9",
            role=role,
            cluster_id=CLUSTER_ID,
            certificate_pem=CLUSTER.root.sign(
                request.csr_pem, node_id="n9", role=role, cluster_id=CLUSTER_ID, now=CLUSTER.now
            ),
            manager_addresses=["127.0.0.1:2377"],
            observed_address=peer,
        )


@contextlib.asynccontextmanager
async def bootstrap(
    issue: Issue, identity_source: Callable[[], Identity] = lambda: SERVER
) -> AsyncIterator[int]:
    """A bootstrap server on loopback; gives its own port."""
    server = BootstrapServer(identity_source, issue)
    port = await server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.stop()


def cluster_address(bootstrap_port: int) -> str:
    return f"127.0.0.1:{bootstrap_port - 1}"
