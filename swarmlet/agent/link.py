"""The agent's side of the wire, as it needs it: implemented by `grpclink`, and in memory by tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from swarmlet.api import pb


class LinkSession(Protocol):
    """One stream to one manager. Iterating and sending raise SwarmletError when it ends."""

    async def send(self, message: pb.AgentMessage) -> None: ...

    def __aiter__(self) -> AsyncIterator[pb.ManagerMessage]: ...


class ManagerLink(Protocol):
    def session(self) -> AbstractAsyncContextManager[LinkSession]:
        """One attempt at one manager: the leader if known, else one by chance.

        Raises, here or from the session, NotLeader (with the leader's address if that
        manager knows it), NotFound (this node is not of the swarm), Unavailable and
        other SwarmletErrors. Waiting before the next attempt is the caller's business.
        """

    async def publish_logs(self, batches: AsyncIterator[pb.LogBatch]) -> None:
        """Sends batches to the manager of the present session until the iterator ends."""
