"""What a user may call an object by: its id, its name, or the beginning of its id.

In Docker's order: a whole id wins over a name, a name over a prefix of ids. Errors
are Docker's words.
"""

from __future__ import annotations

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument, NotFound
from swarmlet.store.tables import T, Table, Tables

SELF = "self"
"""Names the node that is asked."""


def find_service(view: Tables, reference: str) -> pb.Service:
    """Raises NotFound, or InvalidArgument for a reference that is empty or ambiguous."""
    by_name = view.services.by_name(reference)
    return _find(view.services, reference, [by_name] if by_name is not None else [])


def find_network(view: Tables, reference: str) -> pb.Network:
    """As find_service."""
    by_name = view.networks.by_name(reference)
    return _find(view.networks, reference, [by_name] if by_name is not None else [])


def find_node(view: Tables, reference: str, *, own_id: str) -> pb.Node:
    """As find_service; also by hostname, which several nodes may have, and by "self"."""
    if reference == SELF:
        reference = own_id
    return _find(view.nodes, reference, view.nodes.find("hostname", reference))


def find_task(view: Tables, reference: str) -> pb.Task:
    """As find_service; also by the task's full name, e.g. web.1.<id>."""
    # A full name ends with the id, so no search through all tasks is needed.
    by_id = view.tasks.get(reference.rpartition(".")[2])
    named = [by_id] if by_id is not None and task_name(by_id) == reference else []
    return _find(view.tasks, reference, named)


def task_name(task: pb.Task) -> str:
    """The task's own name, or the one Docker derives: service.slot.id, with the node for a global service."""
    return task.name or f"{task.service_name}.{task.slot or task.node_id}.{task.id}"


def _find(table: Table[T], reference: str, named: list[T]) -> T:
    if not reference:
        raise InvalidArgument(f"the reference to a {table.kind} is empty: give a name or an id")
    exact = table.get(reference)
    if exact is not None:
        return exact
    found = named or table.by_id_prefix(reference)
    if not found:
        raise NotFound(f"{table.kind} {reference} not found")
    if len(found) > 1:
        raise InvalidArgument(f"{table.kind} {reference} is ambiguous ({len(found)} matches found)")
    return found[0]
