"""What must hold of the tables at any time, checked the slow way: from every object anew.

For `system check` and for tests; a running manager has no time for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from swarmlet.api import pb, taskstate
from swarmlet.store.tables import Table, Tables


def violations(tables: Tables, last_index: int) -> Iterator[str]:
    """What can only be there through damage or a defect, one line each.

    `last_index` is the raft index up to which the tables are.
    """
    if len(tables.clusters) > 1:
        yield f"{len(tables.clusters)} cluster objects instead of one"
    for table in tables.all_tables():
        yield from _table_violations(table, last_index)
    fresh = Tables()
    for table in tables.all_tables():
        for value in table:
            fresh.table_for(value).put(value)
    for table, recomputed in zip(tables.all_tables(), fresh.all_tables(), strict=True):
        for name in table.indexes_unlike(recomputed):
            yield f"the {name} index of {table.kind}s does not fit its objects"


def _table_violations(table: Table[Any], last_index: int) -> Iterator[str]:
    names: Counter[str] = Counter()
    for value in table:
        if not value.id:
            yield f"a {table.kind} has no id"
        if not 0 < value.version.index <= last_index:
            yield (
                f"{table.kind} {value.id} has version {value.version.index}, "
                f"but the state is at index {last_index}"
            )
        if isinstance(value, pb.Task) and not value.service_id:
            yield f"task {value.id} belongs to no service"
        if isinstance(value, pb.Task) and not value.node_id and _needs_node(value.status.state):
            yield f"task {value.id} is {pb.TaskState.Name(value.status.state)} on no node"
        names[table.unique_name(value)] += 1
    for name, count in names.items():
        if name and count > 1:
            yield f"{count} {table.kind}s have the name {name}"


def _needs_node(state: pb.TaskState.ValueType) -> bool:
    # What ended before it was given to a node never had one.
    return state >= pb.TASK_STATE_ASSIGNED and not taskstate.is_terminal(state)


def loose_ends(tables: Tables) -> Iterator[str]:
    """References to what was removed: right for a moment, until the leader has cleared up behind it."""
    for task in tables.tasks:
        if taskstate.is_terminal(task.status.state):
            continue
        if task.node_id and tables.nodes.get(task.node_id) is None:
            yield f"task {task.id} is on node {task.node_id}, which was removed"
        if task.desired_state <= pb.TASK_STATE_RUNNING and tables.services.get(task.service_id) is None:
            yield f"task {task.id} should run for service {task.service_id}, which was removed"
