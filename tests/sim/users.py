"""Users of a simulated cluster: what they ask, what they were answered, and what they watch.

They call any manager, repeat with the same operation id what was left open, and
remember every answer, because an answer is a promise.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

from swarmlet.api import pb
from swarmlet.api.errors import NotLeader, SwarmletError, Unavailable, UnknownOutcome
from swarmlet.api.ids import new_id
from swarmlet.control.grpc import ConnectionLost
from tests.sim.clusterworld import ClusterWorld
from tests.sim.hosts import manager_on
from tests.sim.network import call, open_stream
from tests.sim.processes import Process

ATTEMPTS_MAX = 8
SECOND = 1_000_000_000


class GaveUp(Exception):
    """No answer that says anything, however often it was asked."""


@dataclass
class Promises:
    """What users were told of their writes, by operation id."""

    done: dict[str, int] = field(default_factory=dict)
    """Acknowledged, with the index that was named."""
    always_done: set[str] = field(default_factory=set)
    """Of those, the ones that cannot have turned out to change nothing."""
    refused: set[str] = field(default_factory=set)
    """Refused for certain, every time they were asked."""


class User:
    def __init__(self, world: ClusterWorld, process: Process, promises: Promises, rng: random.Random) -> None:
        self._world = world
        self._process = process
        self._promises = promises
        self.rng = rng

    # ---- one question

    async def read(self, method: str, request: Any) -> Any:
        return await self._ask(method, request, self.rng.choice(self._world.manager_names))

    async def _ask(self, method: str, request: Any, name: str) -> Any:
        def handler() -> Any:
            return getattr(manager_on(self._world, name).control, method)

        timeout = self.rng.choice([3.0, 20.0])
        return await call(self._world.network, self._process, name, handler, request, timeout=timeout)

    async def write(self, method: str, request: Any) -> Any:
        """Raises what the cluster refuses it with, or GaveUp."""
        request.operation_id = operation_id = new_id(self.rng)
        is_uncertain = False
        for _ in range(ATTEMPTS_MAX):
            try:
                response = await self._ask(method, request, self.rng.choice(self._world.manager_names))
            except (UnknownOutcome, ConnectionLost):
                is_uncertain = True
            except (NotLeader, Unavailable):
                pass
            except SwarmletError:
                if not is_uncertain:
                    self._promises.refused.add(operation_id)
                raise
            else:
                self._promises.done[operation_id] = response.index
                if method in ("create_service", "remove_service"):
                    self._promises.always_done.add(operation_id)
                return response
            await asyncio.sleep(self.rng.uniform(0.05, 1.0))
        raise GaveUp(method)

    # ---- what people do

    async def create(self, spec: pb.ServiceSpec) -> str:
        response = await self.write("create_service", pb.CreateServiceRequest(spec=spec))
        return str(response.service_id)

    async def remove(self, service_id: str) -> None:
        await self.write("remove_service", pb.RemoveServiceRequest(service_id=service_id))

    async def update(self, service_id: str, **changes: Any) -> None:
        """`image`, `replicas`, `force`. Reads before it writes, so it may be refused as out of sequence."""
        got = await self.read("get_service", pb.GetServiceRequest(reference=service_id))
        request = pb.UpdateServiceRequest(service_id=service_id, version=got.service.version.index)
        request.spec.CopyFrom(got.service.spec)
        if "image" in changes:
            request.spec.task_template.container_spec.image = changes["image"]
        if "replicas" in changes:
            request.spec.mode.replicated.replicas = changes["replicas"]
        if changes.get("force"):
            request.spec.task_template.force_update += 1
        await self.write("update_service", request)

    async def set_node(self, name: str, **changes: Any) -> None:
        """`availability`, `zone`."""
        got = await self.read("get_node", pb.GetNodeRequest(reference=name))
        request = pb.UpdateNodeRequest(node_id=name, version=got.node.version.index)
        request.spec.CopyFrom(got.node.spec)
        if "availability" in changes:
            request.spec.availability = changes["availability"]
        if "zone" in changes:
            request.spec.labels["zone"] = changes["zone"]
        await self.write("update_node", request)

    async def remove_node(self, name: str) -> None:
        await self.write("remove_node", pb.RemoveNodeRequest(node_id=name, force=True))

    async def insist(self, act: Any) -> None:
        """Repeats `act()` until it is done."""
        while True:
            try:
                await act()
                return
            except (SwarmletError, GaveUp):
                await asyncio.sleep(0.5)


def a_spec(
    name: str,
    replicas: int = 1,
    *,
    image: str = "ok:1",
    port: int | None = None,
    restart_seconds: float = 0.0,
    parallelism: int = 1,
    delay_seconds: float = 0.0,
    monitor_seconds: float = 1.0,
    start_first: bool = False,
    on_failure: pb.FailureAction.ValueType = pb.FAILURE_ACTION_PAUSE,
    constraints: tuple[str, ...] = (),
    is_global: bool = False,
    condition: pb.RestartCondition.ValueType = pb.RESTART_CONDITION_ANY,
    attempts: int = 0,
    cpus: int = 0,
) -> pb.ServiceSpec:
    """`port` is published; 0 lets the cluster choose one. `cpus` are reserved for each task."""
    spec = pb.ServiceSpec(name=name)
    if is_global:
        getattr(spec.mode, "global").SetInParent()
    else:
        spec.mode.replicated.replicas = replicas
    template = spec.task_template
    template.container_spec.image = image
    template.restart_policy.delay_ns = int(restart_seconds * SECOND)
    template.restart_policy.condition = condition
    template.restart_policy.max_attempts = attempts
    template.resources.reservations.nano_cpus = cpus * SECOND
    template.placement.constraints.extend(constraints)
    for config in (spec.update_config, spec.rollback_config):
        config.parallelism = parallelism
        config.delay_ns = int(delay_seconds * SECOND)
        config.monitor_ns = int(monitor_seconds * SECOND)
        config.order = pb.UPDATE_ORDER_START_FIRST if start_first else pb.UPDATE_ORDER_STOP_FIRST
    spec.update_config.failure_action = on_failure
    if port is not None:
        spec.endpoint_spec.ports.add(target_port=80, published_port=port)
    return spec


class Watching:
    """A client of Control.watch that keeps what it is told, and asks another manager when the stream ends."""

    def __init__(self, world: ClusterWorld, process: Process, rng: random.Random) -> None:
        self._world = world
        self._process = process
        self._rng = rng
        self.objects: dict[tuple[str, str], bytes] = {}

    async def run(self) -> None:
        while True:
            name = self._rng.choice(self._world.manager_names)
            try:
                await self._follow(name)
            except SwarmletError:
                pass
            await asyncio.sleep(0.3)

    async def _follow(self, name: str) -> None:
        async def serve(incoming: Any, send: Any) -> None:
            control = manager_on(self._world, name).control
            async for response in control.watch(pb.WatchRequest(kinds=["service", "task"])):
                send(response)

        stream, connection = await open_stream(self._world.network, self._process, name, serve)
        try:
            async for response in stream:
                self._take(response)
        finally:
            connection.close(0)

    def _take(self, response: pb.WatchResponse) -> None:
        if response.snapshot:
            self.objects.clear()
        for event in response.events:
            kind = str(event.object.WhichOneof("object"))
            value = getattr(event.object, kind)
            if event.kind == pb.CHANGE_KIND_DELETE:
                self.objects.pop((kind, value.id), None)
            else:
                self.objects[kind, value.id] = value.SerializeToString(deterministic=True)
