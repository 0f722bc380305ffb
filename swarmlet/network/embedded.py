"""What the agent composes with its runtime: published ports and reachable tasks.

`ServiceProxy` is the contract; `EmbeddedProxy` does it in this process, and
`NoProxy` is for simulations, where no byte flows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from swarmlet.api import pb
from swarmlet.network.proxy import PortProxy
from swarmlet.network.relay import TaskRelays


class ServiceProxy(Protocol):
    async def apply(self, services: Sequence[pb.ServiceEndpoints]) -> None:
        """Takes up the whole endpoint table; returns when nothing new goes to what left it."""

    async def expose(
        self, task_id: str, addresses: Sequence[pb.EndpointAddress]
    ) -> Sequence[pb.EndpointAddress]:
        """Makes a running task reachable from every node and says where. Raises OSError."""

    async def withdraw(self, task_id: str) -> None:
        """The task has ended."""

    def errors(self) -> Sequence[str]:
        """What does not work at the moment, for people."""

    async def close(self) -> None: ...


class EmbeddedProxy:
    def __init__(self, *, listen_address: str, node_address: str) -> None:
        self._ports = PortProxy(listen_address)
        self._relays = TaskRelays(node_address)

    async def apply(self, services: Sequence[pb.ServiceEndpoints]) -> None:
        await self._ports.apply(services)

    async def expose(
        self, task_id: str, addresses: Sequence[pb.EndpointAddress]
    ) -> Sequence[pb.EndpointAddress]:
        return await self._relays.expose(task_id, addresses)

    async def withdraw(self, task_id: str) -> None:
        await self._relays.withdraw(task_id)

    def errors(self) -> Sequence[str]:
        return list(self._ports.errors().values())

    async def close(self) -> None:
        await self._ports.close()
        await self._relays.close()


class NoProxy:
    """Publishes nothing; tasks are reported where their runtime says they are."""

    async def apply(self, services: Sequence[pb.ServiceEndpoints]) -> None:
        return

    async def expose(
        self, task_id: str, addresses: Sequence[pb.EndpointAddress]
    ) -> Sequence[pb.EndpointAddress]:
        return addresses

    async def withdraw(self, task_id: str) -> None:
        return

    def errors(self) -> Sequence[str]:
        return []

    async def close(self) -> None:
        return
