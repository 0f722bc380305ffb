"""Makes a task that listens on an address of its own host reachable from other nodes.

The task's loopback or bridge address means nothing elsewhere; a relay listens on the
node's address and passes connections on. It belongs to the agent, one per target
port, for as long as the task runs.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence

from swarmlet.api import pb
from swarmlet.network.backends import BackendPool
from swarmlet.network.endpoints import Backend, Route
from swarmlet.network.splice import ClientConnection
from swarmlet.network.udp import UdpForwarder


class TaskRelays:
    """The relays of one node's tasks."""

    def __init__(self, node_address: str) -> None:
        """`node_address` is where other nodes reach this one."""
        self._node_address = node_address
        self._listeners: dict[str, list[asyncio.AbstractServer | asyncio.DatagramTransport]] = {}

    def is_needed(self, address: str) -> bool:
        """Whether others cannot dial `address` themselves.

        In a lab (a node on a loopback address) everybody shares this host.
        """
        return address != self._node_address and not _is_loopback(self._node_address)

    async def expose(
        self, task_id: str, addresses: Sequence[pb.EndpointAddress]
    ) -> Sequence[pb.EndpointAddress]:
        """Addresses that any node can dial, in place of the task's own. Raises OSError."""
        await self.withdraw(task_id)
        exposed = []
        for address in addresses:
            if self.is_needed(address.address):
                exposed.append(await self._relay(task_id, address))
            else:
                exposed.append(address)
        return exposed

    async def withdraw(self, task_id: str) -> None:
        """Takes no more connections for the task; idempotent."""
        for listener in self._listeners.pop(task_id, ()):
            listener.close()

    async def close(self) -> None:
        for task_id in list(self._listeners):
            await self.withdraw(task_id)

    async def _relay(self, task_id: str, address: pb.EndpointAddress) -> pb.EndpointAddress:
        pool = BackendPool(lambda: None)
        pool.update(Route(active=(Backend(task_id, address.address, address.port),)))
        loop = asyncio.get_running_loop()
        listener: asyncio.AbstractServer | asyncio.DatagramTransport
        if address.protocol == pb.PORT_PROTOCOL_UDP:
            listener, _ = await loop.create_datagram_endpoint(
                lambda: UdpForwarder(pool), (self._node_address, 0)
            )
            port = listener.get_extra_info("sockname")[1]
        else:
            # Neither waits nor asks twice: that is for the proxy that came here, which knows others.
            server = await loop.create_server(
                lambda: ClientConnection(pool, wait_seconds=0, replays=0), self._node_address, 0
            )
            listener = server
            port = server.sockets[0].getsockname()[1]
        self._listeners.setdefault(task_id, []).append(listener)
        return pb.EndpointAddress(
            protocol=address.protocol,
            target_port=address.target_port,
            address=self._node_address,
            port=port,
        )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
