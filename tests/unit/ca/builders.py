"""A cluster's CA and identities of its nodes, in one line each."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from swarmlet.api import pb
from swarmlet.ca.identity import Identity, new_key_and_csr
from swarmlet.ca.root import RootCA

CLUSTER_ID = "cluster000000000000000001x"
MANAGER = pb.NODE_ROLE_MANAGER
WORKER = pb.NODE_ROLE_WORKER


@dataclass
class Cluster:
    """A root CA and what it signs; two of them share nothing but, by default, the cluster id."""

    cluster_id: str = CLUSTER_ID
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        # Old enough to have signed certificates that have expired since.
        self.root = RootCA.create(self.now - timedelta(days=365))

    def identity(
        self,
        node_id: str,
        role: pb.NodeRole.ValueType,
        *,
        signed_ago: timedelta = timedelta(0),
        lifetime: timedelta = timedelta(days=90),
        cluster_id: str = "",
    ) -> Identity:
        key_pem, csr_pem = new_key_and_csr()
        certificate_pem = self.root.sign(
            csr_pem,
            node_id=node_id,
            role=role,
            cluster_id=cluster_id or self.cluster_id,
            now=self.now - signed_ago,
            lifetime=lifetime,
        )
        return Identity.from_pem(
            certificate_pem=certificate_pem, key_pem=key_pem, root_pem=self.root.certificate_pem
        )

    def manager(self, node_id: str = "m1") -> Identity:
        return self.identity(node_id, MANAGER)

    def worker(self, node_id: str = "w1") -> Identity:
        return self.identity(node_id, WORKER)

    def expired_manager(self, node_id: str = "m1") -> Identity:
        return self.identity(node_id, MANAGER, signed_ago=timedelta(days=10), lifetime=timedelta(days=1))
