"""Who a node is: its key, its certificate and the root that it trusts, and their file.

The node keeps one Identity, replaces it when it is renewed, and hands it to
everything that speaks TLS. The private key is made here and leaves the process
only into the identity's file. Reading and writing block for a few milliseconds
(fsync): call them in a thread from an event loop.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from swarmlet.api import pb
from swarmlet.api.errors import FailedPrecondition, InvalidArgument
from swarmlet.ca.root import CLOCK_SKEW, join_certificates, role_from_name, split_certificates

# Key, leaf and root are in one file, so that one rename replaces them together: a
# crash can never leave the key of one certificate beside another certificate.
FILE_NAME = "identity.pem"

_RENEW_EARLIEST = 0.5
_RENEW_LATEST = 0.8
_KEY_END = b"-----END PRIVATE KEY-----\n"


@dataclass(frozen=True)
class Identity:
    """One node's certificate with its key. Never changed: a renewal makes a new one."""

    node_id: str
    role: pb.NodeRole.ValueType
    cluster_id: str
    certificate_pem: bytes
    """The leaf, then the root: what is shown to peers."""
    key_pem: bytes = field(repr=False)
    root_pem: bytes
    not_before: datetime
    not_after: datetime

    @classmethod
    def from_pem(cls, *, certificate_pem: bytes, key_pem: bytes, root_pem: bytes) -> Identity:
        """The identity that a certificate (leaf first) states, after checking that the parts belong together.

        The key must be the leaf's and the leaf signed by the root. Dates are not
        checked: a node that was off for long must still know who it was. Raises
        InvalidArgument.
        """
        leaf, *_ = _certificates(certificate_pem, "the certificate")
        roots = _certificates(root_pem, "the root certificate")
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InvalidArgument("the private key is not an unencrypted PEM key") from error
        if key.public_key() != leaf.public_key():
            raise InvalidArgument("the private key does not belong to the certificate")
        if not any(_is_signed_by(leaf, root) for root in roots):
            raise InvalidArgument("the certificate was not signed by the root certificate")
        node_id, role, cluster_id = subject_of(leaf)
        return cls(
            node_id=node_id,
            role=role,
            cluster_id=cluster_id,
            certificate_pem=join_certificates([leaf, *roots]),
            key_pem=key_pem,
            root_pem=join_certificates(roots),
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
        )

    def is_valid(self, now: datetime) -> bool:
        """Whether peers whose clock shows `now` (UTC) accept it."""
        return self.not_before <= now <= self.not_after

    def renew_at(self, rng: random.Random) -> datetime:
        """When to ask for a new certificate: after a random 50-80 % of its life.

        The life counts from the signing, not from the earlier date that the
        certificate bears; otherwise a short-lived one would be due at once.
        """
        signed = min(self.not_before + CLOCK_SKEW, self.not_after)
        return signed + (self.not_after - signed) * rng.uniform(_RENEW_EARLIEST, _RENEW_LATEST)

    def save(self, directory: Path) -> None:
        """Writes the identity's file (mode 0600): afterwards the new one is there, after a crash old or new.

        Makes the directory (0700) when it is missing. Raises FailedPrecondition when
        the file system refuses; the old file is then still there. One writer at a time.
        """
        path = directory / FILE_NAME
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(path, self.key_pem + self.certificate_pem)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot save this node's identity in {path}: {error.strerror or error}"
            ) from error

    @classmethod
    def load(cls, directory: Path) -> Identity | None:
        """The identity saved in a directory; None when there is none.

        Raises FailedPrecondition, naming the file, when it cannot be read, is damaged
        or its parts do not belong together.
        """
        path = directory / FILE_NAME
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FailedPrecondition(
                f"cannot read this node's identity {path}: {error.strerror or error}"
            ) from error
        try:
            return _decode(data)
        except InvalidArgument as error:
            raise FailedPrecondition(
                f"this node's identity {path} is damaged: {error}; put the file back from a copy, "
                'or leave with "swarmlet swarm leave --force" and join again'
            ) from error


def new_key_and_csr() -> tuple[bytes, bytes]:
    """A fresh ECDSA P-256 key (PKCS #8 PEM, unencrypted) and a request for a certificate for it (PEM).

    The request's subject is empty: the signer decides who the node is.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return key_pem, request.public_bytes(serialization.Encoding.PEM)


def subject_of(leaf: x509.Certificate) -> tuple[str, pb.NodeRole.ValueType, str]:
    """Node id, role and cluster id that a node's certificate states. Raises InvalidArgument."""
    values = []
    for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.ORGANIZATION_NAME):
        attributes = leaf.subject.get_attributes_for_oid(oid)
        # More than one could mean different things to different readers.
        if len(attributes) != 1 or not attributes[0].value:
            raise InvalidArgument("the certificate does not name exactly one node, one role and one cluster")
        values.append(str(attributes[0].value))
    node_id, unit, cluster_id = values
    role = role_from_name(unit)
    if role is None:
        raise InvalidArgument(f"the certificate names an unknown role, {unit!r}")
    return node_id, role, cluster_id


def _decode(data: bytes) -> Identity:
    if not data:
        raise InvalidArgument("the file is empty")
    key_pem, end, certificates_pem = data.partition(_KEY_END)
    if not end:
        raise InvalidArgument("the private key is incomplete")
    # Parsing skips what is no whole PEM block, so a cut in the last one is looked for here.
    if certificates_pem.count(b"-----BEGIN") != certificates_pem.count(b"-----END CERTIFICATE-----\n"):
        raise InvalidArgument("a certificate is incomplete")
    leaf, *roots = _certificates(certificates_pem, "the certificate")
    if not roots:
        raise InvalidArgument("the root certificate is missing")
    return Identity.from_pem(
        certificate_pem=join_certificates([leaf]), key_pem=key_pem + end, root_pem=join_certificates(roots)
    )


def _certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    try:
        return split_certificates(pem)
    except ValueError as error:
        raise InvalidArgument(f"{what} is not valid PEM") from error


def _is_signed_by(leaf: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_name(path.name + ".new")
    try:
        # What a crash left aside may have any mode; a fresh file has ours from its first byte.
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    # Without this the rename itself may be lost with the power.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
