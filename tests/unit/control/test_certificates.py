"""Who gets a certificate: joiners with a token, and nodes that are still of the cluster."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import pytest
from cryptography import x509

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument, NotLeader, PermissionDenied, Unauthenticated, Unavailable
from swarmlet.ca.authorize import Peer
from swarmlet.ca.identity import new_key_and_csr, subject_of
from swarmlet.ca.root import RootCA
from swarmlet.control.certificates import CertificateAuthority
from swarmlet.control.initial import write_initial_cluster
from swarmlet.store.store import Store
from tests.builders import NOW, LocalProposer, make_store
from tests.unit.control.fakes import FakeAgreement, drop

MANAGERS = [pb.ManagerAddress(node_id="one", address="10.0.0.1:2377")]


class Office:
    """A certificate authority with everything that it stands on."""

    def __init__(self, store: Store, cluster: pb.Cluster) -> None:
        self.store = store
        self.cluster = cluster
        self.agreement = FakeAgreement()
        self.authority = CertificateAuthority(
            store, now=lambda: NOW, agreement=self.agreement, managers=lambda: MANAGERS
        )

    def request(self, token: str, **fields: object) -> pb.IssueCertificateRequest:
        _, csr_pem = new_key_and_csr()
        return pb.IssueCertificateRequest(token=token, csr_pem=csr_pem, hostname="beta", **fields)  # type: ignore[arg-type]

    async def joined(self, role: pb.NodeRole.ValueType = pb.NODE_ROLE_WORKER) -> str:
        tokens = self.cluster.join_tokens
        token = tokens.manager if role == pb.NODE_ROLE_MANAGER else tokens.worker
        return (await self.authority.issue(self.request(token), "10.0.0.2")).node_id

    def peer(self, node_id: str, cluster_id: str = "") -> Peer:
        return Peer(node_id, pb.NODE_ROLE_WORKER, cluster_id or self.cluster.id)


async def an_office() -> Office:
    store = make_store()
    cluster = await write_initial_cluster(
        store,
        cluster_id="c1",
        node_id="one",
        hostname="alpha",
        address="10.0.0.1:2377",
        root_ca=RootCA.create(NOW),
        rng=random.Random(1),
        options=pb.SwarmInitRequest(cert_expiry_ns=2 * 3600 * 10**9),
    )
    return Office(store, cluster)


def leaf(certificate_pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(certificate_pem)[0]


@pytest.mark.parametrize("role", [pb.NODE_ROLE_WORKER, pb.NODE_ROLE_MANAGER])
async def test_the_token_decides_the_role(role: pb.NodeRole.ValueType) -> None:
    office = await an_office()
    tokens = office.cluster.join_tokens
    token = tokens.manager if role == pb.NODE_ROLE_MANAGER else tokens.worker

    answer = await office.authority.issue(office.request(token), "10.0.0.2")

    assert subject_of(leaf(answer.certificate_pem)) == (answer.node_id, role, "c1")
    assert answer.role == role
    assert list(answer.manager_addresses) == ["10.0.0.1:2377"]
    assert (answer.cluster_id, answer.observed_address) == ("c1", "10.0.0.2")
    node = office.store.view.nodes.get(answer.node_id)
    assert node is not None
    assert (node.spec.role, node.certified_role, node.status.state) == (role, role, pb.NODE_STATE_UNKNOWN)
    assert (node.description.hostname, node.status.addr) == ("beta", "10.0.0.2")


async def test_the_certificate_lives_as_long_as_the_cluster_says() -> None:
    office = await an_office()

    answer = await office.authority.issue(office.request(office.cluster.join_tokens.worker), "10.0.0.2")

    assert leaf(answer.certificate_pem).not_valid_after_utc == NOW + timedelta(hours=2)


async def test_a_joiner_may_name_its_address_and_availability() -> None:
    office = await an_office()
    request = office.request(
        office.cluster.join_tokens.worker,
        advertise_address="192.168.0.9:2377",
        availability=pb.NODE_AVAILABILITY_DRAIN,
    )

    answer = await office.authority.issue(request, "10.0.0.2")

    node = office.store.view.nodes.get(answer.node_id)
    assert node is not None
    assert answer.observed_address == "192.168.0.9:2377"
    assert node.status.addr == "192.168.0.9"
    assert node.spec.availability == pb.NODE_AVAILABILITY_DRAIN


async def test_a_join_that_is_repeated_with_its_key_makes_one_node() -> None:
    office = await an_office()
    request = office.request(office.cluster.join_tokens.worker)

    first = await office.authority.issue(request, "10.0.0.2")
    second = await office.authority.issue(request, "10.0.0.2")

    assert second.node_id == first.node_id
    assert len(office.store.view.nodes) == 2


@pytest.mark.parametrize("token", ["", "SWMTKN-1-made-up", "worker"])
async def test_a_wrong_token_is_refused_without_being_shown(token: str) -> None:
    office = await an_office()

    with pytest.raises(
        Unauthenticated, match=r"^invalid join token: it is not one of this swarm's"
    ) as caught:
        await office.authority.issue(office.request(token), "10.0.0.2")

    assert not token or token == "worker" or token not in caught.value.message
    assert len(office.store.view.nodes) == 1


async def test_a_rotated_token_is_refused() -> None:
    office = await an_office()
    old = office.cluster.join_tokens.worker
    rotated = pb.Cluster()
    rotated.CopyFrom(office.cluster)
    rotated.join_tokens.worker = office.cluster.join_tokens.worker[:-4] + "0000"
    await office.store.update(lambda transaction: transaction.update(rotated))

    with pytest.raises(Unauthenticated, match="invalid join token"):
        await office.authority.issue(office.request(old), "10.0.0.2")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"csr_pem": b"nonsense"}, "is not a PEM-encoded PKCS #10 request"),
        ({"availability": 9}, "invalid Availability: 9"),
    ],
)
async def test_a_nonsensical_request_makes_no_node(fields: dict[str, object], text: str) -> None:
    office = await an_office()
    request = office.request(office.cluster.join_tokens.worker)
    for field, value in fields.items():
        setattr(request, field, value)

    with pytest.raises(InvalidArgument, match=text):
        await office.authority.issue(request, "10.0.0.2")

    assert len(office.store.view.nodes) == 1


async def test_a_follower_sends_joiners_to_the_leader() -> None:
    office = await an_office()
    office.agreement.elect("two")

    with pytest.raises(NotLeader) as caught:
        await office.authority.issue(office.request("whatever"), "10.0.0.2")

    assert caught.value.leader_address == "two:2377"


async def test_before_the_cluster_is_known_nobody_joins() -> None:
    office = Office(make_store(), pb.Cluster())

    with pytest.raises(Unavailable):
        await office.authority.issue(office.request("whatever"), "10.0.0.2")


async def test_a_renewed_certificate_bears_the_role_that_the_node_should_have() -> None:
    office = await an_office()
    node_id = await office.joined()
    promoted = pb.Node()
    node = office.store.view.nodes.get(node_id)
    assert node is not None
    promoted.CopyFrom(node)
    promoted.spec.role = pb.NODE_ROLE_MANAGER
    await office.store.update(lambda transaction: transaction.update(promoted))

    answer = await office.authority.renew(office.peer(node_id), new_key_and_csr()[1])

    assert answer.role == pb.NODE_ROLE_MANAGER
    assert subject_of(leaf(answer.certificate_pem)) == (node_id, pb.NODE_ROLE_MANAGER, "c1")
    node = office.store.view.nodes.get(node_id)
    assert node is not None
    assert node.certified_role == pb.NODE_ROLE_MANAGER


async def test_a_renewal_in_the_same_role_writes_nothing() -> None:
    office = await an_office()
    node_id = await office.joined()
    before = office.store.applied_index

    await office.authority.renew(office.peer(node_id), new_key_and_csr()[1])

    assert office.store.applied_index == before


async def test_a_removed_node_gets_no_certificate() -> None:
    office = await an_office()
    node_id = await office.joined()
    await drop(office.store, pb.Node, node_id)

    with pytest.raises(PermissionDenied, match=f"^node {node_id} was removed from the swarm$"):
        await office.authority.renew(office.peer(node_id), new_key_and_csr()[1])


async def test_a_node_of_another_cluster_gets_no_certificate() -> None:
    office = await an_office()
    node_id = await office.joined()

    with pytest.raises(PermissionDenied):
        await office.authority.renew(office.peer(node_id, "c2"), new_key_and_csr()[1])


async def test_a_follower_renews_nothing() -> None:
    office = await an_office()
    office.agreement.elect(None)

    with pytest.raises(NotLeader):
        await office.authority.renew(office.peer("one"), new_key_and_csr()[1])


async def test_joins_of_one_key_at_the_same_time_make_one_node() -> None:
    office = await an_office()
    local = LocalProposer(office.store)

    class Slow:
        async def propose(self, data: bytes) -> object:
            await asyncio.sleep(0)
            return local.apply(data)

    office.store.attach(Slow())
    request = office.request(office.cluster.join_tokens.worker)

    answers = await asyncio.gather(*(office.authority.issue(request, "10.0.0.2") for _ in range(3)))

    assert len({answer.node_id for answer in answers}) == 1
    assert len(office.store.view.nodes) == 2
