"""A swarm of fakes for control: agreement that tests steer, and a Control upon a real store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio

from swarmlet.api import pb
from swarmlet.api.v1 import control_pb2_grpc
from swarmlet.control.control import Control
from swarmlet.control.forward import ForwardingControl
from swarmlet.control.grpc import ControlServicer
from swarmlet.control.interface import ControlInterface
from swarmlet.control.terms import Terms
from swarmlet.store.store import Store, Transaction
from swarmlet.store.tables import StoredObject, T
from tests.builders import NOW, an_id, make_store


def member(node_id: str) -> pb.RaftMember:
    return pb.RaftMember(node_id=node_id, address=f"{node_id}:2377")


class FakeAgreement:
    """One manager's view of the group, as the test says; a leader from the start."""

    def __init__(self, node_id: str = "one", members: Sequence[str] = ()) -> None:
        self._node_id = node_id
        self.members: list[pb.RaftMember] = [member(m) for m in members or [node_id]]
        self.leader: pb.RaftMember | None = member(node_id)
        self.is_leader = True
        self.term = 1
        self.reached = {m.node_id for m in self.members}
        self.lost: dict[str, float] = {}
        self.barriers = 0
        self.applied = 0
        self.applied_waits: list[int] = []
        self._changes = 0
        self._changed = asyncio.Event()

    @property
    def node_id(self) -> str:
        return self._node_id

    def reachable(self) -> frozenset[str]:
        return frozenset(self.reached if self.is_leader else ())

    def unreachable(self) -> Mapping[str, float]:
        return self.lost

    def elect(self, node_id: str | None) -> None:
        self.leader = None if node_id is None else member(node_id)
        self.is_leader = node_id == self._node_id
        self._changes += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def propose(self, data: bytes) -> object:
        raise AssertionError("control writes through the store")

    async def barrier(self) -> None:
        self.barriers += 1

    async def leadership(self, seen: int) -> int:
        while self._changes <= seen:
            await self._changed.wait()
        return self._changes

    async def wait_applied(self, index: int) -> None:
        self.applied_waits.append(index)


class FakeLogs:
    """Two lines of whatever is asked for, then the end."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, list[str]]] = []
        self.closed = 0

    async def service_logs(
        self, *, service_id: str | None, task_ids: Sequence[str], options: pb.LogOptions
    ) -> AsyncGenerator[pb.ServiceLogsResponse, None]:
        self.asked.append((service_id, list(task_ids)))
        try:
            for text in (b"first", b"second"):
                yield pb.ServiceLogsResponse(lines=[pb.LogLine(data=text)])
        finally:
            self.closed += 1


@dataclass
class Desk:
    """A Control with everything that it stands on."""

    store: Store
    agreement: FakeAgreement
    control: Control
    logs: FakeLogs = field(default_factory=FakeLogs)


def make_desk(*objects: StoredObject, agreement: FakeAgreement | None = None) -> Desk:
    store = make_store(*objects)
    agreement = agreement or FakeAgreement()
    # Another sequence than the store's: equal operation ids would mean the same operation.
    control = Control(store, now=lambda: NOW, rng=random.Random("control"), agreement=agreement)
    desk = Desk(store, agreement, control)
    control.log_source = desk.logs
    return desk


def a_spec(name: str = "web", image: str = "nginx:1", **fields: object) -> pb.ServiceSpec:
    spec = pb.ServiceSpec(name=name)
    spec.task_template.container_spec.image = image
    spec.MergeFrom(pb.ServiceSpec(**fields))  # type: ignore[arg-type]
    return spec


async def created(desk: Desk, spec: pb.ServiceSpec, operation_id: str = "") -> pb.Service:
    """The stored service, after creating it through the door."""
    answer = await desk.control.create_service(
        pb.CreateServiceRequest(spec=spec, operation_id=operation_id or an_id("operation"))
    )
    service = desk.store.view.services.get(answer.service_id)
    assert service is not None
    return service


async def drop_one(desk: Desk, kind: type[T], object_id: str) -> None:
    await drop(desk.store, kind, object_id)


async def drop(store: Store, kind: type[T], object_id: str) -> None:
    def change(transaction: Transaction) -> None:
        transaction.delete(kind, object_id)

    await store.update(change)


def with_port(
    name: str, published: int, mode: pb.PublishMode.ValueType = pb.PUBLISH_MODE_INGRESS
) -> pb.ServiceSpec:
    spec = a_spec(name)
    spec.endpoint_spec.ports.add(target_port=80, published_port=published, publish_mode=mode)
    return spec


async def updated(desk: Desk, service: pb.Service, spec: pb.ServiceSpec, **fields: str) -> pb.Service:
    """The service after an update from the version that is stored now."""
    current = desk.store.view.services.get(service.id)
    assert current is not None
    answer = await desk.control.update_service(
        pb.UpdateServiceRequest(service_id=service.id, version=current.version.index, spec=spec, **fields)
    )
    return answer.service


def scaled(service: pb.Service, replicas: int) -> pb.ServiceSpec:
    spec = pb.ServiceSpec()
    spec.CopyFrom(service.spec)
    spec.mode.replicated.replicas = replicas
    return spec


def with_image(service: pb.Service, image: str) -> pb.ServiceSpec:
    spec = pb.ServiceSpec()
    spec.CopyFrom(service.spec)
    spec.task_template.container_spec.image = image
    return spec


def under(control: ControlInterface, terms: Terms) -> ControlInterface:
    return control.under(terms) if isinstance(control, ForwardingControl) else control


class Servers:
    """In-process gRPC servers, by address."""

    def __init__(self) -> None:
        self._running: dict[str, grpc.aio.Server] = {}

    @asynccontextmanager
    async def __call__(self, control: ControlInterface) -> AsyncIterator[str]:
        """Serves on a free port of the loopback for as long as the block lasts, or until `stop`."""
        server = grpc.aio.server()
        control_pb2_grpc.add_ControlServicer_to_server(ControlServicer(lambda t: under(control, t)), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._running[address] = server
        try:
            yield address
        finally:
            await self.stop(address)

    async def stop(self, address: str) -> None:
        """As when the process dies: calls under way are cut off."""
        server = self._running.pop(address, None)
        if server is not None:
            await server.stop(grace=None)


serving = Servers()
