"""The tables in memory, with their secondary indexes.

One table per kind of object. Objects are immutable by convention: whoever wants to
change one copies it. Plain dicts, so a consistent copy of a table for a snapshot is
a shallow copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from swarmlet.api import pb
from swarmlet.api.errors import AlreadyExists

StoredObject = pb.Cluster | pb.Node | pb.Service | pb.Task | pb.Network | pb.Secret | pb.Config
T = TypeVar("T", pb.Cluster, pb.Node, pb.Service, pb.Task, pb.Network, pb.Secret, pb.Config)

IndexKeys = Callable[[T], Iterable[object]]


class Table(Generic[T]):
    """Objects of one kind by id, by unique name, and by the indexes it was made with."""

    def __init__(
        self,
        kind: str,
        *,
        unique_name: Callable[[T], str] = lambda _: "",
        indexes: dict[str, IndexKeys[T]] | None = None,
    ) -> None:
        self.kind = kind
        self.unique_name: Callable[[T], str] = unique_name
        self._key_functions: dict[str, IndexKeys[T]] = indexes or {}
        self._by_id: dict[str, T] = {}
        self._by_name: dict[str, str] = {}
        # Inner dicts are ordered sets of ids.
        self._by_key: dict[str, dict[object, dict[str, None]]] = {name: {} for name in self._key_functions}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._by_id.values()))

    def get(self, object_id: str) -> T | None:
        return self._by_id.get(object_id)

    def by_name(self, name: str) -> T | None:
        """Only for kinds whose names are unique."""
        object_id = self._by_name.get(name)
        return None if object_id is None else self._by_id[object_id]

    def find(self, index: str, key: object) -> list[T]:
        """Objects under `key` of an index, in the order in which they came there.

        That order is this manager's own (a restored snapshot has the order of creation):
        who needs the same one everywhere sorts.
        """
        return [self._by_id[i] for i in self._by_key[index].get(key, ())]

    def count(self, index: str, key: object) -> int:
        return len(self._by_key[index].get(key, ()))

    def by_id_prefix(self, prefix: str) -> list[T]:
        return [value for key, value in self._by_id.items() if key.startswith(prefix)]

    def name_taken(self, name: str) -> AlreadyExists:
        """The error for a name that another object has."""
        return AlreadyExists(f"name conflicts with an existing object: {self.kind} {name} already exists")

    def put(self, value: T) -> None:
        """Adds or replaces. Names are not checked: within a transaction they may pass from one to another."""
        old = self._by_id.get(value.id)
        self._by_id[value.id] = value
        if old is not None:
            self._forget_name(old)
        name = self.unique_name(value)
        if name:
            self._by_name[name] = value.id
        for index, keys in self._key_functions.items():
            before = dict.fromkeys(keys(old)) if old is not None else {}
            after = dict.fromkeys(keys(value))
            if before != after:
                self._unindex(index, value.id, (key for key in before if key not in after))
                for key in after:
                    self._by_key[index].setdefault(key, {})[value.id] = None

    def remove(self, object_id: str) -> T | None:
        old = self._by_id.pop(object_id, None)
        if old is not None:
            self._forget_name(old)
            for index, keys in self._key_functions.items():
                self._unindex(index, object_id, keys(old))
        return old

    def clear(self) -> None:
        self._by_id.clear()
        self._by_name.clear()
        for index in self._by_key.values():
            index.clear()

    def indexes_unlike(self, other: Table[T]) -> list[str]:
        """Names of the indexes in which two tables of one kind differ."""
        names = ["name"] if self._by_name != other._by_name else []
        return names + [name for name, ids in self._by_key.items() if ids != other._by_key[name]]

    def _forget_name(self, old: T) -> None:
        name = self.unique_name(old)
        # The name may already be another's, when one transaction passed it on.
        if self._by_name.get(name) == old.id:
            del self._by_name[name]

    def _unindex(self, index: str, object_id: str, keys: Iterable[object]) -> None:
        for key in dict.fromkeys(keys):
            ids = self._by_key[index][key]
            del ids[object_id]
            if not ids:
                del self._by_key[index][key]


class Tables:
    """All tables. `view` in the rest of the code is one of these, read without awaiting in between."""

    def __init__(self) -> None:
        self.clusters = Table[pb.Cluster]("cluster", unique_name=lambda c: c.spec.name)
        self.nodes = Table[pb.Node]("node", indexes={"hostname": lambda n: [n.description.hostname]})
        self.services = Table[pb.Service](
            "service",
            unique_name=lambda s: s.spec.name,
            indexes={
                "network": _networks_of_service,
                "secret": _secrets_of_service,
                "config": _configs_of_service,
            },
        )
        self.tasks = Table[pb.Task](
            "task",
            indexes={
                "service": lambda t: [t.service_id],
                "slot": lambda t: [slot_key(t)],
                "node": lambda t: [t.node_id] if t.node_id else [],
                "desired_state": lambda t: [t.desired_state],
                "state": lambda t: [t.status.state],
            },
        )
        self.networks = Table[pb.Network]("network", unique_name=lambda n: n.spec.name)
        self.secrets = Table[pb.Secret]("secret", unique_name=lambda s: s.spec.name)
        self.configs = Table[pb.Config]("config", unique_name=lambda c: c.spec.name)
        self._by_type: dict[type[StoredObject], Table[Any]] = {
            pb.Cluster: self.clusters,
            pb.Node: self.nodes,
            pb.Service: self.services,
            pb.Task: self.tasks,
            pb.Network: self.networks,
            pb.Secret: self.secrets,
            pb.Config: self.configs,
        }

    def table_of(self, kind: type[T]) -> Table[T]:
        return self._by_type[kind]

    def table_for(self, value: StoredObject) -> Table[Any]:
        return self._by_type[type(value)]

    def all_tables(self) -> Iterable[Table[Any]]:
        return self._by_type.values()

    def cluster(self) -> pb.Cluster | None:
        """The one cluster object; None before the first manager has written it."""
        return next(iter(self.clusters), None)


SlotKey = tuple[str, int, str]


def slot_key(task: pb.Task) -> SlotKey:
    """Shared by tasks that replace each other: the slot of a replicated service, the node of a global one."""
    return (task.service_id, task.slot, "" if task.slot else task.node_id)


def _networks_of_service(service: pb.Service) -> list[str]:
    attachments = [*service.spec.task_template.networks, *service.spec.networks]
    return list(dict.fromkeys(a.target for a in attachments))


def _secrets_of_service(service: pb.Service) -> list[str]:
    return list(dict.fromkeys(s.secret_id for s in service.spec.task_template.container_spec.secrets))


def _configs_of_service(service: pb.Service) -> list[str]:
    return list(dict.fromkeys(c.config_id for c in service.spec.task_template.container_spec.configs))
