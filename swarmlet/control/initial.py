"""The first two objects of a new swarm: the cluster and the node that made it."""

from __future__ import annotations

import random
from datetime import timedelta

from cryptography.hazmat.primitives import serialization

from swarmlet.api import pb
from swarmlet.api.addresses import host_of
from swarmlet.ca import tokens
from swarmlet.ca.root import NODE_LIFETIME, RootCA, split_certificates
from swarmlet.control.clusters import DEFAULT_NAME, validate_cluster_spec
from swarmlet.store.store import Store, Transaction

HEARTBEAT = timedelta(seconds=1)
TASK_HISTORY_LIMIT = 5
ADDRESS_POOL = "10.0.0.0/8"
SUBNET_SIZE = 24
DATA_PATH_PORT = 4789


async def write_initial_cluster(
    store: Store,
    *,
    cluster_id: str,
    node_id: str,
    hostname: str,
    address: str,
    root_ca: RootCA,
    rng: random.Random,
    options: pb.SwarmInitRequest,
) -> pb.Cluster:
    """Makes the cluster object and this first manager's node; returns the stored cluster.

    `address` is the manager's host:port. Where a cluster is already stored nothing is
    changed, so a node that crashed during its init may repeat it. `rng` makes the join
    tokens: outside simulations random.SystemRandom(). Raises InvalidArgument for
    options out of range, and what the store raises.
    """
    cluster = pb.Cluster(
        id=cluster_id,
        spec=initial_spec(options),
        tls_info=tls_info(root_ca.certificate_pem),
        default_addr_pool=[ADDRESS_POOL],
        subnet_size=SUBNET_SIZE,
        data_path_port=DATA_PATH_PORT,
    )
    cluster.root_ca.certificate_pem = root_ca.certificate_pem
    cluster.root_ca.private_key_pem = root_ca.private_key_pem
    cluster.join_tokens.worker = tokens.generate(root_ca.digest(), rng)
    cluster.join_tokens.manager = tokens.generate(root_ca.digest(), rng)
    node = new_node(
        node_id, pb.NODE_ROLE_MANAGER, availability=options.availability, hostname=hostname, address=address
    )
    node.manager_status.addr = address
    node.manager_status.leader = True
    node.manager_status.reachability = pb.REACHABILITY_REACHABLE

    def write(transaction: Transaction) -> None:
        if transaction.view.cluster() is None:
            transaction.create(cluster)
            transaction.create(node)

    await store.update(write)
    stored = store.view.cluster()
    assert stored is not None
    return stored


def initial_spec(options: pb.SwarmInitRequest) -> pb.ClusterSpec:
    """The cluster's spec: Docker's defaults, but a heartbeat of 1 s. Raises InvalidArgument."""
    spec = pb.ClusterSpec(name=DEFAULT_NAME)
    has_limit = options.HasField("task_history_limit")
    spec.orchestration.task_history_retention_limit = (
        options.task_history_limit if has_limit else TASK_HISTORY_LIMIT
    )
    spec.dispatcher.heartbeat_period_ns = options.dispatcher_heartbeat_ns or nanoseconds(HEARTBEAT)
    spec.ca_config.node_cert_expiry_ns = options.cert_expiry_ns or nanoseconds(NODE_LIFETIME)
    validate_cluster_spec(spec)
    return spec


def new_node(
    node_id: str,
    role: pb.NodeRole.ValueType,
    *,
    availability: pb.NodeAvailability.ValueType,
    hostname: str,
    address: str,
) -> pb.Node:
    """A node that has a certificate and has not been heard of yet."""
    node = pb.Node(id=node_id, certified_role=role)
    node.spec.role = role
    node.spec.availability = availability
    node.description.hostname = hostname
    node.status.state = pb.NODE_STATE_UNKNOWN
    node.status.addr = host_of(address)
    return node


def tls_info(root_pem: bytes) -> pb.TLSInfo:
    """What Docker tells of the root: its PEM, its subject and its public key, both DER."""
    root = split_certificates(root_pem)[0]
    return pb.TLSInfo(
        trust_root=root_pem.decode("ascii"),
        cert_issuer_subject=root.subject.public_bytes(),
        cert_issuer_public_key=root.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )


def nanoseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1) * 1000
