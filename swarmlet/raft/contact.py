"""Which of the other managers this one can reach, by its own eyes, leader or not.

Told by `node` what comes in and which connections come and go. A connection through a
cut network lasts until the next keepalive fails, and followers have nothing to tell
each other while somebody leads; but without a leader each asks all others for their
vote, again and again, and whoever does not answer then is out of reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Contact:
    """Times are seconds on one monotonic clock, the caller's."""

    def __init__(self, *, silence_seconds: float) -> None:
        """`silence_seconds`: without a leader, how long a peer that is there may say nothing."""
        self._silence_seconds = silence_seconds
        self._since: float | None = None
        self._connected: set[str] = set()
        self._disconnected_at: dict[str, float] = {}
        self._heard_at: dict[str, float] = {}
        self._leaderless_since: float | None = None

    def heard(self, peer: str, now: float) -> None:
        self._heard_at[peer] = now

    def connected(self, peer: str, now: float) -> None:
        self._connected.add(peer)
        self._heard_at[peer] = now

    def disconnected(self, peer: str, now: float) -> None:
        self._connected.discard(peer)
        self._disconnected_at[peer] = now

    def leader_is(self, leader: str | None, now: float) -> None:
        """Called in every round; the first call is when this manager began to take part."""
        if self._since is None:
            self._since = now
        if leader is not None:
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since = now

    def unreachable(self, peers: Iterable[str], now: float) -> Mapping[str, float]:
        """Those of `peers` out of reach, and for how long."""
        since = {peer: self._lost_at(peer, now) for peer in peers}
        return {peer: max(0.0, now - at) for peer, at in since.items() if at is not None}

    def _lost_at(self, peer: str, now: float) -> float | None:
        began = now if self._since is None else self._since
        moments = []
        if peer not in self._connected:
            moments.append(self._disconnected_at.get(peer, began))
        if self._leaderless_since is not None:
            silent_since = max(self._heard_at.get(peer, began), self._leaderless_since)
            if now - silent_since > self._silence_seconds:
                moments.append(silent_since)
        return min(moments, default=None)
