"""Names for services whose user gave none, as Docker invents them."""

from __future__ import annotations

import random
from collections.abc import Callable

_QUALITIES = (
    "amber", "bold", "brisk", "calm", "clever", "crisp", "daring", "eager", "early", "fair", "fleet", "fond",
    "frank", "gentle", "glad", "golden", "grand", "happy", "hardy", "honest", "jolly", "keen", "kind",
    "lively", "lucid", "merry", "mild", "modest", "nimble", "noble", "patient", "placid", "plucky",
    "proud", "quick", "quiet", "ready", "serene", "sharp", "silent", "smart", "solid", "steady", "sunny",
    "swift", "tidy", "true", "vivid", "warm", "wise",
)  # fmt: skip
_CREATURES = (
    "badger", "bee", "bison", "cormorant", "crane", "cricket", "curlew", "dolphin", "dragonfly", "egret",
    "falcon", "finch", "firefly", "gannet", "gecko", "goose", "hare", "heron", "hornet", "ibis", "jackdaw",
    "kestrel", "kite", "lapwing", "lark", "linnet", "lynx", "mantis", "marten", "martin", "moth", "newt",
    "osprey", "otter", "owl", "petrel", "plover", "puffin", "raven", "robin", "rook", "seal", "starling",
    "stork", "swallow", "swan", "swift", "tern", "wasp", "wren",
)  # fmt: skip

_ATTEMPTS = 100


def invent_name(rng: random.Random, is_taken: Callable[[str], bool]) -> str:
    """A free name such as `calm_heron`, with a number behind it when names become scarce."""
    name = ""
    for attempt in range(_ATTEMPTS):
        name = f"{rng.choice(_QUALITIES)}_{rng.choice(_CREATURES)}"
        if attempt >= _ATTEMPTS // 2:
            name += str(rng.randrange(10**9))
        if not is_taken(name):
            break
    return name
