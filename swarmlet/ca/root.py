"""The cluster's root of trust: one self-signed certificate and the key that signs nodes.

Made once at `swarm init` and kept in the replicated state; every manager signs
with it. What a node certificate says (who, which role, which cluster) is decided
here and nowhere else. This module never sees a node's private key.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarmlet.api import ids, pb
from swarmlet.api.errors import FailedPrecondition, InvalidArgument

ROOT_COMMON_NAME = "swarm-ca"
ROOT_LIFETIME = timedelta(days=20 * 365)
NODE_LIFETIME = timedelta(days=90)
# Certificates are dated back by this much, so that a peer whose clock is behind takes them.
CLOCK_SKEW = timedelta(hours=1)
# Base-36 digits of a SHA-256.
DIGEST_LENGTH = 50

WORKER_NAME = "swarm-worker"
MANAGER_NAME = "swarm-manager"

_CSR_BYTES_MAX = 16 * 1024
_NODE_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAMES: dict[pb.NodeRole.ValueType, str] = {
    pb.NODE_ROLE_WORKER: WORKER_NAME,
    pb.NODE_ROLE_MANAGER: MANAGER_NAME,
}


def role_name(role: pb.NodeRole.ValueType) -> str:
    """How certificates spell a role. Raises InvalidArgument for a number that is no role."""
    name = _NAMES.get(role)
    if name is None:
        raise InvalidArgument(f"{role} is not a node role")
    return name


def role_from_name(name: str) -> pb.NodeRole.ValueType | None:
    """The role that a certificate's organizational unit names; None when it names none."""
    return next((role for role, known in _NAMES.items() if known == name), None)


def split_certificates(pem: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM text, in order. Raises ValueError when there is none or one is damaged."""
    return x509.load_pem_x509_certificates(pem)


def join_certificates(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def root_digest(certificate_pem: bytes) -> str:
    """What a join token says about the root: SHA-256 over its PEM, in 50 base-36 digits.

    SwarmKit's digest: it is taken over the normalised PEM text (no comments, no
    headers, 64 columns), not over the DER. Raises ValueError when the text holds
    no certificate.
    """
    normal = join_certificates(split_certificates(certificate_pem))
    return ids.to_base36(int.from_bytes(hashlib.sha256(normal).digest(), "big"), DIGEST_LENGTH)


@dataclass(frozen=True)
class RootCA:
    """The root certificate with its private key (PKCS #8, unencrypted PEM)."""

    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)

    @classmethod
    def create(cls, now: datetime) -> RootCA:
        """A fresh root with a fresh ECDSA P-256 key, valid for 20 years from `now` (UTC)."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ROOT_COMMON_NAME)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + ROOT_LIFETIME)
            # One intermediate: while roots are rotated the new one is trusted through the old one.
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
            private_key_pem=key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    def digest(self) -> str:
        """The first part of this root's join tokens."""
        return root_digest(self.certificate_pem)

    def sign(
        self,
        csr_pem: bytes,
        *,
        node_id: str,
        role: pb.NodeRole.ValueType,
        cluster_id: str,
        now: datetime,
        lifetime: timedelta = NODE_LIFETIME,
    ) -> bytes:
        """A node's certificate for the key of a request: the leaf's PEM, then the root's.

        Of the request only the public key counts, and that it is signed with it; what
        else it asks for is ignored. Valid from one hour before `now` until `lifetime`
        after it, but never longer than the root. Raises InvalidArgument,
        and FailedPrecondition when the root itself has expired.
        """
        public_key = _requested_key(csr_pem)
        # An id stands in the certificate beside the role's name; it must not pass for one.
        if not _NODE_ID.fullmatch(node_id) or node_id.startswith("swarm-"):
            raise InvalidArgument(f"{node_id!r} cannot be a node id")
        if not cluster_id or len(cluster_id) > 64:
            raise InvalidArgument(f"{cluster_id!r} cannot be a cluster id")
        if lifetime <= timedelta(0):
            raise InvalidArgument("the lifetime of a certificate must be positive")
        root = split_certificates(self.certificate_pem)[0]
        if now >= root.not_valid_after_utc:
            raise FailedPrecondition(f"the cluster's root certificate expired at {root.not_valid_after_utc}")
        key = serialization.load_pem_private_key(self.private_key_pem, password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        unit = role_name(role)
        subject = [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, node_id),
        ]
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(root.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(min(now + lifetime, root.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(node_id), x509.DNSName(unit)]), False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        return join_certificates([leaf]) + self.certificate_pem


def _requested_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    if len(csr_pem) > _CSR_BYTES_MAX:
        raise InvalidArgument(f"the certificate request is larger than {_CSR_BYTES_MAX} bytes")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidArgument("the certificate request is not a PEM-encoded PKCS #10 request") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidArgument("the certificate request must be for an ECDSA P-256 key")
    if not signed:
        raise InvalidArgument("the certificate request is not signed with the key that it names")
    return key


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
