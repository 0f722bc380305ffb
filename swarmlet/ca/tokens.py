"""Join tokens, in Docker's format: what lets a machine into the cluster, and as what.

`SWMTKN-1-<digest>-<secret>`: 50 base-36 digits that identify the root CA, so
that the joiner knows whom it talks to before it says anything, and 25 base-36
digits of a 16-byte secret, so that the cluster knows that the joiner was invited.
Neither a token nor its secret is ever put into an error, a log or a repr.
"""

from __future__ import annotations

import hmac
import random
import re
from dataclasses import dataclass, field

from swarmlet.api import ids, pb
from swarmlet.api.errors import InvalidArgument
from swarmlet.ca.root import DIGEST_LENGTH

SECRET_LENGTH = 25
_SECRET_BITS = 128
_DIGEST_BITS = 256
_BASE36 = re.compile(r"[0-9a-z]+")
_REMEDY = 'copy it whole from "swarmlet swarm join-token worker" or "... manager" on a manager'


@dataclass(frozen=True)
class JoinToken:
    """The parts of a token: the root's digest and the secret, both in base 36."""

    digest: str
    secret: str = field(repr=False)


def generate(root_digest: str, rng: random.Random) -> str:
    """A new token for the root with this digest.

    The secret is as good as `rng`: outside simulations that is random.SystemRandom().
    """
    if not _fits(root_digest, DIGEST_LENGTH, _DIGEST_BITS):
        raise ValueError("not the digest of a root CA")
    return f"SWMTKN-1-{root_digest}-{ids.to_base36(rng.getrandbits(_SECRET_BITS), SECRET_LENGTH)}"


def parse(text: str) -> JoinToken:
    """The parts of a token. Raises InvalidArgument, saying what is wrong without showing the token."""
    parts = text.strip().split("-")
    if parts[0] != "SWMTKN":
        raise InvalidArgument(f'invalid join token: it does not start with "SWMTKN-1-"; {_REMEDY}')
    if len(parts) > 1 and parts[1] != "1":
        raise InvalidArgument("invalid join token: only version 1 (SWMTKN-1-...) is supported")
    if len(parts) != 4:
        raise InvalidArgument(
            f"invalid join token: it has {len(parts)} parts, 4 expected (SWMTKN-1-DIGEST-SECRET); {_REMEDY}"
        )
    _, _, digest, secret = parts
    for name, value, length, bits in (
        ("third", digest, DIGEST_LENGTH, _DIGEST_BITS),
        ("fourth", secret, SECRET_LENGTH, _SECRET_BITS),
    ):
        if len(value) != length:
            raise InvalidArgument(
                f"invalid join token: its {name} part has {len(value)} characters, "
                f"{length} expected; {_REMEDY}"
            )
        if not _fits(value, length, bits):
            raise InvalidArgument(f"invalid join token: its {name} part is damaged; {_REMEDY}")
    return JoinToken(digest, secret)


def role_for(token: str, tokens: pb.JoinTokens) -> pb.NodeRole.ValueType | None:
    """The role that a token gives in the cluster with these tokens; None when it is none of them.

    Takes the same time whichever token is nearer.
    """
    offered = token.strip().encode("utf-8", "surrogatepass")
    # Both are always compared; an empty token in the cluster is no invitation.
    is_worker = hmac.compare_digest(offered, tokens.worker.encode()) and bool(tokens.worker)
    is_manager = hmac.compare_digest(offered, tokens.manager.encode()) and bool(tokens.manager)
    if is_manager:
        return pb.NODE_ROLE_MANAGER
    return pb.NODE_ROLE_WORKER if is_worker else None


def _fits(text: str, length: int, bits: int) -> bool:
    return len(text) == length and _BASE36.fullmatch(text) is not None and int(text, 36) < 1 << bits
