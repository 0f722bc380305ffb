"""Objects and stores for tests, in one line each.

Ids are readable and rise in the order of making ("task00...01", "task00...02"), so
whatever sorts by id is stable. Everything is plain data: no I/O, a fixed clock, a
seeded random generator.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from swarmlet.api import pb
from swarmlet.api.ids import ID_LENGTH
from swarmlet.store.store import Store, wrap
from swarmlet.store.tables import StoredObject

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GIB = 1 << 30

_numbers = itertools.count(1)


def an_id(prefix: str = "") -> str:
    """A fresh id that looks like a real one and begins with `prefix`."""
    return prefix + str(next(_numbers)).zfill(ID_LENGTH - len(prefix))


def a_service(name: str = "web", replicas: int = 1, *, id: str = "", **spec: Any) -> pb.Service:
    """A replicated service; `spec` are fields of ServiceSpec, merged over the defaults."""
    service = pb.Service(id=id or an_id("service"), version=pb.Version(index=1))
    service.spec_version.index = 1
    service.spec.name = name
    service.spec.mode.replicated.replicas = replicas
    service.spec.task_template.container_spec.image = "image:1"
    service.spec.MergeFrom(pb.ServiceSpec(**spec))
    return service


def a_global_service(name: str = "agent", *, id: str = "", **spec: Any) -> pb.Service:
    mode = pb.ServiceMode()
    # A keyword of Python, hence not an attribute.
    getattr(mode, "global").SetInParent()
    return a_service(name, id=id, mode=mode, **spec)


def a_task(
    service: pb.Service,
    slot: int = 1,
    state: pb.TaskState.ValueType = pb.TASK_STATE_RUNNING,
    desired: pb.TaskState.ValueType = pb.TASK_STATE_RUNNING,
    node_id: str = "",
    *,
    id: str = "",
    **fields: Any,
) -> pb.Task:
    """A task made from the service as it is now; `fields` are further fields of Task."""
    task = pb.Task(
        id=id or an_id("task"),
        version=pb.Version(index=1),
        service_id=service.id,
        service_name=service.spec.name,
        service_labels=service.spec.labels,
        slot=slot,
        node_id=node_id,
        spec=service.spec.task_template,
        spec_version=service.spec_version,
        status=pb.TaskStatus(state=state),
        desired_state=desired,
    )
    task.status.timestamp.FromDatetime(NOW)
    task.created_at.FromDatetime(NOW)
    task.MergeFrom(pb.Task(**fields))
    return task


def a_node(
    hostname: str = "node",
    cpus: float = 4,
    memory: int = 8 * GIB,
    labels: dict[str, str] | None = None,
    state: pb.NodeState.ValueType = pb.NODE_STATE_READY,
    role: pb.NodeRole.ValueType = pb.NODE_ROLE_WORKER,
    availability: pb.NodeAvailability.ValueType = pb.NODE_AVAILABILITY_ACTIVE,
    *,
    id: str = "",
    **fields: Any,
) -> pb.Node:
    """A node with resources; `labels` are the operator's (spec), `memory` in bytes."""
    node = pb.Node(id=id or an_id("node"), version=pb.Version(index=1), certified_role=role)
    node.spec.role = role
    node.spec.availability = availability
    node.spec.labels.update(labels or {})
    node.description.hostname = hostname
    node.description.platform.architecture = "x86_64"
    node.description.platform.os = "linux"
    node.description.resources.nano_cpus = int(cpus * 1_000_000_000)
    node.description.resources.memory_bytes = memory
    node.description.engine.runtime = "simulated"
    node.status.state = state
    node.status.addr = "127.0.0.1"
    node.MergeFrom(pb.Node(**fields))
    return node


def a_cluster(name: str = "default", *, id: str = "", **fields: Any) -> pb.Cluster:
    cluster = pb.Cluster(id=id or an_id("cluster"), version=pb.Version(index=1), **fields)
    cluster.spec.name = name
    return cluster


def a_network(name: str = "front", *, id: str = "", **spec: Any) -> pb.Network:
    return pb.Network(id=id or an_id("net"), spec=pb.NetworkSpec(name=name, **spec))


def a_secret(name: str = "key", data: bytes = b"hidden", *, id: str = "", **spec: Any) -> pb.Secret:
    return pb.Secret(id=id or an_id("secret"), spec=pb.SecretSpec(name=name, data=data, **spec))


def a_config(name: str = "conf", data: bytes = b"text", *, id: str = "", **spec: Any) -> pb.Config:
    return pb.Config(id=id or an_id("config"), spec=pb.ConfigSpec(name=name, data=data, **spec))


class LocalProposer:
    """Agreement with oneself: what is proposed is applied at once, at the next index."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.log: list[tuple[int, bytes]] = []

    async def propose(self, data: bytes) -> object:
        return self.apply(data)

    def apply(self, data: bytes) -> object:
        index = self._store.applied_index + 1
        self.log.append((index, data))
        return self._store.apply(index, data)


class InterleavingProposer(LocalProposer):
    """Keeps the order of proposals, and lets other tasks run before each is applied."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        super().__init__(store)
        self._rng = rng
        self._turn = asyncio.Lock()

    async def propose(self, data: bytes) -> object:
        async with self._turn:
            for _ in range(self._rng.randrange(1, 5)):
                await asyncio.sleep(0)
            return self.apply(data)


def make_store(*objects: StoredObject, now: Callable[[], datetime] = lambda: NOW, seed: int = 0) -> Store:
    """A store that holds copies of `objects` and commits locally.

    The copies have the version and times of this store; read them from `store.view`.
    """
    store = Store(now=now, rng=random.Random(seed))
    proposer = LocalProposer(store)
    store.attach(proposer)
    if objects:
        transaction = pb.Transaction(operation_id="builders")
        transaction.time.FromDatetime(now())
        for value in objects:
            transaction.changes.add(kind=pb.CHANGE_KIND_CREATE, object=wrap(value))
        refused = proposer.apply(transaction.SerializeToString())
        if refused is not None:
            raise AssertionError(f"objects that cannot be stored together: {refused}")
    return store
