"""A manager's door in front of fakes: its own state, and other managers that may lead."""

from __future__ import annotations

import random
from collections.abc import Callable

from swarmlet.api import pb
from swarmlet.control.forward import ForwardingControl
from tests.unit.control.fakes import Desk, FakeAgreement, a_spec, make_desk

MEMBERS = ["one", "two", "three"]


class Memory:
    """A stub without a network: calls a Control in the same process."""

    def __init__(self, control: object) -> None:
        self._control = control

    def __getattr__(self, name: str) -> Callable[..., object]:
        local = "".join("_" + c.lower() if c.isupper() else c for c in name).removeprefix("_")

        def method(request: object, *, timeout: float | None = None) -> object:
            return getattr(self._control, local)(request)

        return method


class Front:
    """Manager "one" with its own state, and who answers under the other managers' names."""

    def __init__(self, own: Desk) -> None:
        self.own = own
        self.others: dict[str, object] = {}
        self.agreement = own.agreement
        self.door = ForwardingControl(
            own.control, agreement=own.agreement, connect=self._connect, rng=random.Random("front")
        )

    def _connect(self, leader: pb.RaftMember) -> object:
        return self.others[leader.node_id]

    async def create(self, name: str = "web", operation_id: str = "") -> pb.CreateServiceResponse:
        return await self.door.create_service(
            pb.CreateServiceRequest(spec=a_spec(name), operation_id=operation_id)
        )


def a_front(*objects: pb.Service | pb.Node | pb.Task, leader: str | None = "two") -> Front:
    front = Front(make_desk(*objects, agreement=FakeAgreement("one", MEMBERS)))
    front.agreement.elect(leader)
    return front


def a_leader(front: Front, name: str = "two") -> Desk:
    desk = make_desk(agreement=FakeAgreement(name, MEMBERS))
    front.others[name] = Memory(desk.control)
    return desk
