"""Who gets a certificate: joiners with a token, and nodes of the cluster whose own runs out.

On the leader only, because both write what they decided. Serving it (HTTPS for
joiners, gRPC for nodes) and forwarding to the leader is the daemon's work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from swarmlet.api import pb
from swarmlet.api.errors import (
    AlreadyExists,
    InvalidArgument,
    NotLeader,
    PermissionDenied,
    Unauthenticated,
)
from swarmlet.api.ids import id_from
from swarmlet.ca import tokens
from swarmlet.ca.authorize import Peer
from swarmlet.ca.root import NODE_LIFETIME, RootCA, role_name
from swarmlet.control.clusters import the_cluster
from swarmlet.control.initial import new_node
from swarmlet.raft.agreement import Agreement
from swarmlet.store.store import Store, Transaction


class CertificateAuthority:
    """Signs with the root that the store holds. Calls may run at the same time.

    `now` is UTC; `managers` are the addresses that a joiner is told.
    """

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], datetime],
        agreement: Agreement,
        managers: Callable[[], Sequence[pb.ManagerAddress]],
    ) -> None:
        self._store = store
        self._now = now
        self._agreement = agreement
        self._managers = managers

    async def issue(self, request: pb.IssueCertificateRequest, peer_ip: str) -> pb.IssueCertificateResponse:
        """Takes a machine into the cluster, in the role that its token gives.

        Asking again with the same key gives the same node, so a joiner may repeat what
        failed half-way. Raises Unauthenticated for a token that is not (or no longer)
        the cluster's, InvalidArgument, NotLeader, Unavailable or UnknownOutcome.
        """
        self._check_leader()
        cluster = the_cluster(self._store.view)
        role = tokens.role_for(request.token, cluster.join_tokens)
        if role is None:
            raise Unauthenticated(
                "invalid join token: it is not one of this swarm's, or it was rotated; "
                'get the current one with "swarmlet swarm join-token" on a manager'
            )
        if request.availability not in pb.NodeAvailability.values():
            raise InvalidArgument(f"invalid Availability: {request.availability}")
        node_id = _node_id(request.csr_pem, role)
        certificate_pem = self._sign(cluster, request.csr_pem, node_id, role)
        address = request.advertise_address or peer_ip
        node = new_node(
            node_id,
            role,
            availability=request.availability,
            hostname=request.hostname,
            address=address,
        )
        await self._add(node)
        return pb.IssueCertificateResponse(
            node_id=node_id,
            role=role,
            certificate_pem=certificate_pem,
            manager_addresses=[manager.address for manager in self._managers()],
            cluster_id=cluster.id,
            observed_address=address,
        )

    async def renew(self, peer: Peer, csr_pem: bytes) -> pb.RenewCertificateResponse:
        """A new certificate for a node of the cluster, in the role that it should have now.

        Raises PermissionDenied for a removed node, InvalidArgument, NotLeader,
        Unavailable or UnknownOutcome.
        """
        self._check_leader()
        cluster = the_cluster(self._store.view)
        node = self._store.view.nodes.get(peer.node_id)
        if node is None or peer.cluster_id != cluster.id:
            raise PermissionDenied(f"node {peer.node_id} was removed from the swarm")
        role = node.spec.role
        certificate_pem = self._sign(cluster, csr_pem, node.id, role)

        def note_role(transaction: Transaction) -> None:
            current = transaction.view.nodes.get(peer.node_id)
            if current is None:
                raise PermissionDenied(f"node {peer.node_id} was removed from the swarm")
            if current.certified_role != role:
                changed = pb.Node()
                changed.CopyFrom(current)
                changed.certified_role = role
                transaction.update(changed)

        await self._store.update(note_role)
        return pb.RenewCertificateResponse(certificate_pem=certificate_pem, role=role)

    def _check_leader(self) -> None:
        if not self._agreement.is_leader:
            leader = self._agreement.leader
            raise NotLeader(leader.address if leader is not None else "")

    def _sign(self, cluster: pb.Cluster, csr_pem: bytes, node_id: str, role: pb.NodeRole.ValueType) -> bytes:
        expiry_ns = cluster.spec.ca_config.node_cert_expiry_ns
        root = RootCA(cluster.root_ca.certificate_pem, cluster.root_ca.private_key_pem)
        return root.sign(
            csr_pem,
            node_id=node_id,
            role=role,
            cluster_id=cluster.id,
            now=self._now(),
            lifetime=timedelta(microseconds=expiry_ns // 1000) if expiry_ns else NODE_LIFETIME,
        )

    async def _add(self, node: pb.Node) -> None:
        def create(transaction: Transaction) -> None:
            if transaction.view.nodes.get(node.id) is None:
                transaction.create(node)

        try:
            await self._store.update(create)
        except AlreadyExists:
            # The same joiner's earlier call was committed in between.
            if self._store.view.nodes.get(node.id) is None:
                raise


def _node_id(csr_pem: bytes, role: pb.NodeRole.ValueType) -> str:
    """An id that follows from the joiner's key, so that a repeated call means the same node."""
    try:
        key = x509.load_pem_x509_csr(csr_pem).public_key()
    except ValueError as error:
        raise InvalidArgument("the certificate request is not a PEM-encoded PKCS #10 request") from error
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return id_from("node", role_name(role), hashlib.sha256(encoded).hexdigest())
