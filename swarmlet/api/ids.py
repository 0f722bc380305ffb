"""Object ids: 25 characters of base 36, as Docker's."""

from __future__ import annotations

import hashlib
import random

ID_LENGTH = 25
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_id(rng: random.Random) -> str:
    """A fresh id. 128 bits are drawn, so collisions need no handling."""
    return to_base36(rng.getrandbits(128), ID_LENGTH)


def id_from(*parts: str) -> str:
    """The same id for the same parts: a create that is repeated names the same object."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        # With its length, so that no two lists of parts read the same.
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return to_base36(int.from_bytes(digest.digest()[:16], "big"), ID_LENGTH)


def is_id(text: str) -> bool:
    """Whether the text has the form of an id; nothing is looked up."""
    return len(text) == ID_LENGTH and all(c in _ALPHABET for c in text)


def to_base36(number: int, length: int) -> str:
    """`number` in base 36, padded with zeros to `length`. Raises ValueError when negative or too large."""
    if number < 0:
        raise ValueError("a negative number has no base-36 form")
    digits = []
    while number:
        number, digit = divmod(number, 36)
        digits.append(_ALPHABET[digit])
    if len(digits) > length:
        raise ValueError(f"number needs {len(digits)} base-36 digits, {length} allowed")
    return "".join(reversed(digits)).rjust(length, "0")
