"""Tasks on addresses of their own host, made reachable from others."""

from __future__ import annotations

import pytest

from swarmlet.api import pb
from swarmlet.network import relay
from swarmlet.network.relay import TaskRelays
from tests.unit.network.servers import HOST, Server, get


async def test_in_a_lab_tasks_are_reported_where_they_are() -> None:
    relays = TaskRelays("127.0.0.2")
    address = pb.EndpointAddress(target_port=80, address="127.1.0.5", port=8000)

    assert list(await relays.expose("t", [address])) == [address]


async def test_a_task_on_loopback_is_relayed_from_the_nodes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_is_loopback", lambda _address: False)
    server = await Server("task").start()
    relays = TaskRelays("127.0.0.2")

    (exposed,) = await relays.expose(
        "t", [pb.EndpointAddress(target_port=80, address=HOST, port=server.port)]
    )

    assert (exposed.address, exposed.target_port) == ("127.0.0.2", 80)
    assert await _get_at(exposed) == b"task"
    await relays.withdraw("t")
    with pytest.raises(ConnectionRefusedError):
        await _get_at(exposed)
    await server.kill()


async def _get_at(address: pb.EndpointAddress) -> bytes:
    return await get(address.port, host=address.address)
