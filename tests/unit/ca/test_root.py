"""What a node certificate says, and which requests are signed."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarmlet.api import pb
from swarmlet.api.errors import FailedPrecondition, InvalidArgument
from swarmlet.ca.identity import new_key_and_csr
from swarmlet.ca.root import RootCA, root_digest, split_certificates

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def sign(root: RootCA, csr_pem: bytes, **changes: object) -> x509.Certificate:
    arguments = {
        "node_id": "n1",
        "role": pb.NODE_ROLE_WORKER,
        "cluster_id": "c1",
        "now": NOW,
        "lifetime": timedelta(days=90),
        **changes,
    }
    return split_certificates(root.sign(csr_pem, **arguments))[0]  # type: ignore[arg-type]


def test_root_is_a_ca_of_twenty_years_that_begins_an_hour_ago() -> None:
    (certificate,) = split_certificates(RootCA.create(NOW).certificate_pem)

    assert certificate.subject.rfc4514_string() == "CN=swarm-ca"
    assert certificate.not_valid_before_utc == NOW - timedelta(hours=1)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=20 * 365)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    certificate.verify_directly_issued_by(certificate)


def test_digest_is_the_sha256_of_the_pem_in_50_base36_digits() -> None:
    root = RootCA.create(NOW)

    digest = root.digest()

    assert len(digest) == 50
    assert int(digest, 36) == int(hashlib.sha256(root.certificate_pem).hexdigest(), 16)


def test_digest_ignores_what_is_around_the_certificate() -> None:
    root = RootCA.create(NOW)

    assert root_digest(b"# a comment\n\n" + root.certificate_pem + b"\n\n") == root.digest()


def test_two_roots_differ_in_their_digest() -> None:
    assert RootCA.create(NOW).digest() != RootCA.create(NOW).digest()


def test_private_key_is_not_in_the_repr() -> None:
    root = RootCA.create(NOW)

    assert "PRIVATE" not in repr(root)


def test_leaf_states_node_role_and_cluster_and_serves_both_sides() -> None:
    root = RootCA.create(NOW)

    leaf = sign(root, new_key_and_csr()[1], role=pb.NODE_ROLE_MANAGER)

    def named(oid: x509.ObjectIdentifier) -> list[str | bytes]:
        return [a.value for a in leaf.subject.get_attributes_for_oid(oid)]

    assert named(NameOID.COMMON_NAME) == ["n1"]
    assert named(NameOID.ORGANIZATIONAL_UNIT_NAME) == ["swarm-manager"]
    assert named(NameOID.ORGANIZATION_NAME) == ["c1"]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"n1", "swarm-manager"}
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.not_valid_before_utc == NOW - timedelta(hours=1)
    assert leaf.not_valid_after_utc == NOW + timedelta(days=90)
    leaf.verify_directly_issued_by(split_certificates(root.certificate_pem)[0])


def test_answer_is_the_leaf_and_then_the_root() -> None:
    root = RootCA.create(NOW)

    answer = root.sign(new_key_and_csr()[1], node_id="n1", role=pb.NODE_ROLE_WORKER, cluster_id="c1", now=NOW)

    assert split_certificates(answer)[1:] == split_certificates(root.certificate_pem)


def test_what_the_request_asks_for_is_ignored() -> None:
    wish = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "someone-else"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-manager"),
        ]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(wish)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("swarm-manager")]), critical=False)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )

    leaf = sign(RootCA.create(NOW), request.public_bytes(serialization.Encoding.PEM))

    assert "someone-else" not in leaf.subject.rfc4514_string()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "swarm-manager" not in names.get_values_for_type(x509.DNSName)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_certificate_ends_with_the_root_at_the_latest() -> None:
    root = RootCA.create(NOW - timedelta(days=20 * 365 - 1))

    leaf = sign(root, new_key_and_csr()[1], lifetime=timedelta(days=90))

    assert leaf.not_valid_after_utc == NOW + timedelta(days=1)


def test_expired_root_signs_nothing() -> None:
    root = RootCA.create(NOW - timedelta(days=21 * 365))

    with pytest.raises(FailedPrecondition, match="root certificate expired"):
        sign(root, new_key_and_csr()[1])


def test_request_signed_by_another_key_is_refused() -> None:
    _, csr_pem = new_key_and_csr()
    request = x509.load_pem_x509_csr(csr_pem)
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    # The signature is the last thing in the request; another one of the same length takes its place.
    other = x509.load_pem_x509_csr(new_key_and_csr()[1]).public_bytes(serialization.Encoding.DER)
    while len(other) != len(der):
        other = x509.load_pem_x509_csr(new_key_and_csr()[1]).public_bytes(serialization.Encoding.DER)
    der[-len(request.signature) :] = other[-len(request.signature) :]
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)

    with pytest.raises(InvalidArgument, match="not signed with the key"):
        sign(RootCA.create(NOW), forged)


def test_weak_or_other_kinds_of_keys_are_refused() -> None:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    )

    with pytest.raises(InvalidArgument, match="P-256"):
        sign(RootCA.create(NOW), request.public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize(
    "csr_pem",
    [
        b"",
        b"garbage",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        b"x" * 100_000,
    ],
)
def test_what_is_no_request_is_refused(csr_pem: bytes) -> None:
    with pytest.raises(InvalidArgument, match="certificate request"):
        sign(RootCA.create(NOW), csr_pem)


@pytest.mark.parametrize("node_id", ["", "swarm-manager", "swarm-worker", "A", "a.b", "*", "a" * 64])
def test_node_id_that_could_pass_for_something_else_is_refused(node_id: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be a node id"):
        sign(RootCA.create(NOW), new_key_and_csr()[1], node_id=node_id)


def test_unknown_role_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not a node role"):
        sign(RootCA.create(NOW), new_key_and_csr()[1], role=7)
