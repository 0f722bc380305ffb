"""The backup file: header, state, checksum; encrypted unless the user insists otherwise.

`magic, header length u32, header (BackupHeader), payload, SHA-256 of everything
before`. The payload is the state as the store encodes it, or that sealed with
AES-256-GCM under a key made from the passphrase by scrypt; magic and header are
authenticated with it. The checksum tells damage from a wrong passphrase, and does so
before anybody is asked for one.

Used by the command line, where the passphrase is; the daemon never sees it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from google.protobuf.message import DecodeError

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument
from swarmlet.raft.files import sync_directory

MAGIC = b"SWBACK\x00\x01"
FORMAT = 1
SCRYPT_N = 1 << 16
"""64 MiB and some tenths of a second for each guess."""
SCRYPT_R = 8
SCRYPT_P = 1
SCRYPT_BYTES_MAX = 1 << 30
"""What opening a file may cost, whatever its header asks for."""
HEADER_BYTES_MAX = 1 << 16
CHUNK_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 32
_KEY_BYTES = 32
_SALT_BYTES = 16
_NONCE_BYTES = 12
_TAG_BYTES = 16
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Sealed:
    """A backup whose checksum is right."""

    header: pb.BackupHeader
    source: str
    _before: bytes = field(repr=False)
    _payload: bytes = field(repr=False)

    @property
    def is_encrypted(self) -> bool:
        return self.header.HasField("encryption")

    def open(self, passphrase: str | None) -> bytes:
        """The state. Raises InvalidArgument for a wrong passphrase."""
        state = self._payload
        if self.is_encrypted:
            if not passphrase:
                raise InvalidArgument(f"{self.source} is encrypted: its passphrase is needed")
            encryption = self.header.encryption
            try:
                state = AESGCM(_key(passphrase, encryption)).decrypt(
                    encryption.nonce, self._payload, self._before
                )
            except InvalidTag:
                raise InvalidArgument(f"wrong passphrase for {self.source}") from None
        if len(state) != self.header.payload_bytes:
            raise InvalidArgument(
                f"{self.source} holds {len(state)} bytes of state instead of {self.header.payload_bytes}"
            )
        return state


def encode(header: pb.BackupHeader, state: bytes, passphrase: str | None) -> bytes:
    """The file's content; not encrypted when `passphrase` is None."""
    sealed_header = pb.BackupHeader()
    sealed_header.CopyFrom(header)
    sealed_header.format = FORMAT
    sealed_header.payload_bytes = len(state)
    sealed_header.ClearField("encryption")
    if passphrase is not None:
        sealed_header.encryption.salt = os.urandom(_SALT_BYTES)
        sealed_header.encryption.nonce = os.urandom(_NONCE_BYTES)
        sealed_header.encryption.scrypt_n = SCRYPT_N
        sealed_header.encryption.scrypt_r = SCRYPT_R
        sealed_header.encryption.scrypt_p = SCRYPT_P
    encoded = sealed_header.SerializeToString()
    before = MAGIC + _LENGTH.pack(len(encoded)) + encoded
    if passphrase is not None:
        encryption = sealed_header.encryption
        state = AESGCM(_key(passphrase, encryption)).encrypt(encryption.nonce, state, before)
    body = before + state
    return body + hashlib.sha256(body).digest()


def decode(data: bytes, source: str) -> Sealed:
    """Raises InvalidArgument, naming `source`, for what is not a whole backup."""
    start = len(MAGIC) + _LENGTH.size
    if data[: len(MAGIC)] != MAGIC:
        raise InvalidArgument(f"{source} is not a backup that this version can read")
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(body) < start or hashlib.sha256(body).digest() != digest:
        raise InvalidArgument(f"{source} is damaged or incomplete: its checksum does not match")
    (length,) = _LENGTH.unpack_from(body, len(MAGIC))
    end = start + length
    if length > HEADER_BYTES_MAX or end > len(body):
        raise InvalidArgument(f"{source} has an unreadable header")
    try:
        header = pb.BackupHeader.FromString(body[start:end])
    except DecodeError:
        raise InvalidArgument(f"{source} has an unreadable header") from None
    if header.format != FORMAT:
        raise InvalidArgument(f"{source} has format {header.format}; this version reads format {FORMAT}")
    if header.HasField("encryption"):
        _check_encryption(header.encryption, len(body) - end, source)
    return Sealed(header, source, body[:end], body[end:])


def read(path: Path) -> Sealed:
    """Raises OSError, or InvalidArgument for what is not a whole backup."""
    return decode(path.read_bytes(), str(path))


def write(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Durable on return, mode 0600; a crash leaves what was there before, or the whole file.

    Raises FileExistsError unless `overwrite`, and OSError; nothing is left of the attempt.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            aside.replace(path)
        else:
            _put(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(path.parent)


def _put(aside: Path, path: Path) -> None:
    try:
        # Unlike a rename a link never replaces what somebody else has just put there.
        path.hardlink_to(aside)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        aside.replace(path)


def restore_requests(
    header: pb.BackupHeader, state: bytes, advertise_addr: str
) -> Iterator[pb.RestoreRequest]:
    """A backup as the daemon wants it: the header, then the state in pieces."""
    yield pb.RestoreRequest(header=header, advertise_addr=advertise_addr)
    for start in range(0, len(state), CHUNK_BYTES):
        yield pb.RestoreRequest(state=state[start : start + CHUNK_BYTES])


def _key(passphrase: str, encryption: pb.BackupEncryption) -> bytes:
    return Scrypt(
        salt=encryption.salt,
        length=_KEY_BYTES,
        n=encryption.scrypt_n,
        r=encryption.scrypt_r,
        p=encryption.scrypt_p,
    ).derive(passphrase.encode())


def _check_encryption(encryption: pb.BackupEncryption, payload_bytes: int, source: str) -> None:
    n, r, p = encryption.scrypt_n, encryption.scrypt_r, encryption.scrypt_p
    is_power_of_two = n > 1 and n & (n - 1) == 0
    is_affordable = r > 0 and 0 < p <= 16 and 128 * n * r <= SCRYPT_BYTES_MAX
    is_sealed = len(encryption.nonce) == _NONCE_BYTES and payload_bytes >= _TAG_BYTES
    if not (is_power_of_two and is_affordable and is_sealed):
        raise InvalidArgument(f"{source} is encrypted in a way that this version cannot read")
