"""Raft's connections between simulated managers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from swarmlet.api import pb
from swarmlet.raft.node import PeerEvents
from tests.sim.network import Connection, End, Network
from tests.sim.processes import Process

RECONNECT_SECONDS = 0.3


class RaftLinks:
    """`raft.node.PeerTransport`: one connection to each peer for both directions, made again when it broke.

    The manager with the smaller name makes it.
    """

    def __init__(
        self, network: Network, process: Process, links_of: Callable[[str], RaftLinks | None]
    ) -> None:
        """`links_of` are those of the manager that runs on a host at the moment."""
        self._network = network
        self._process = process
        self._links_of = links_of
        self._events: PeerEvents | None = None
        self._peers: set[str] = set()
        self._connections: dict[str, tuple[Connection, int]] = {}

    def attach(self, events: PeerEvents) -> None:
        self._events = events

    def set_peers(self, peers: Mapping[str, str]) -> None:
        fresh, self._peers = peers.keys() - self._peers, set(peers)
        for peer in sorted(self._connections.keys() - self._peers):
            connection, side = self._connections[peer]
            connection.close(side)
            self._lost(peer, connection)
        for peer in sorted(fresh):
            if self._process.host < peer:
                self._connect(peer)

    def send(self, peer: str, message: pb.RaftMessage) -> None:
        if peer in self._connections:
            connection, side = self._connections[peer]
            connection.send(side, message.SerializeToString())

    def _connect(self, peer: str) -> None:
        if peer not in self._peers or peer in self._connections:
            return
        other = self._links_of(peer)
        if other is None or not self._network.can_connect(self._process.host, peer):
            asyncio.get_running_loop().call_later(RECONNECT_SECONDS, self._connect, peer)
            return
        made: list[Connection] = []
        host = self._process.host
        mine = End(
            self._process, lambda m: self._received(peer, made[0], m), lambda: self._lost(peer, made[0])
        )
        theirs = End(
            other._process, lambda m: other._received(host, made[0], m), lambda: other._lost(host, made[0])
        )
        made.append(self._network.connect(mine, theirs))
        made[0].send(0, b"")
        self._up(peer, made[0], 0)

    def _up(self, peer: str, connection: Connection, side: int) -> None:
        assert self._events is not None
        old = self._connections.get(peer)
        if old is not None:
            self._lost(peer, old[0])
        self._connections[peer] = (connection, side)
        self._events.on_connected(peer)

    def _received(self, peer: str, connection: Connection, message: bytes) -> None:
        assert self._events is not None
        if not message:
            if peer in self._peers:
                self._up(peer, connection, 1)
            else:
                connection.close(1)
        elif peer in self._connections and self._connections[peer][0] is connection:
            self._events.on_message(peer, pb.RaftMessage.FromString(message))

    def _lost(self, peer: str, connection: Connection) -> None:
        assert self._events is not None
        known = self._connections.get(peer)
        if known is None or known[0] is not connection:
            return
        del self._connections[peer]
        self._events.on_disconnected(peer)
        if self._process.host < peer and peer in self._peers:
            asyncio.get_running_loop().call_later(RECONNECT_SECONDS, self._connect, peer)
