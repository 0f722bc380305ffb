"""Object ids: 25 characters of base 36, as Docker's."""

from __future__ import annotations

import hashlib
import random

ID_LENGTH = 25
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_SPACE = 36**ID_LENGTH


def new_id(rng: random.Random) -> str:
    """A fresh id. 128 bits are drawn, so collisions need no handling."""
    return _encode(rng.getrandbits(128) % _SPACE)


def id_from(*parts: str) -> str:
    """The same id for the same parts: a create that is repeated names the same object."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return _encode(int.from_bytes(digest[:16], "big") % _SPACE)


def is_id(text: str) -> bool:
    return len(text) == ID_LENGTH and all(c in _ALPHABET for c in text)


def to_base36(number: int, length: int) -> str:
    """`number` in base 36, padded with zeros to `length`. Raises ValueError when it does not fit."""
    digits = []
    while number:
        number, digit = divmod(number, 36)
        digits.append(_ALPHABET[digit])
    if len(digits) > length:
        raise ValueError(f"number needs {len(digits)} base-36 digits, {length} allowed")
    return "".join(reversed(digits)).rjust(length, "0")


def _encode(number: int) -> str:
    return to_base36(number, ID_LENGTH)
