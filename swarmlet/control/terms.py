"""On what terms a user asks: how old an answer may be, and how long he waits for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    is_stale: bool = False
    """Whether a read may be answered from this manager's own state at once, however old that is."""
    seconds: float = float("inf")
    """How long the caller waits; Control has limits of its own besides."""


PLAIN = Terms()
