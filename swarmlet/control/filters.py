"""What a list is narrowed by, with Docker's words and meaning.

The values of one key are alternatives and the keys must all hold, except for labels,
which must all hold too. Names and ids match by prefix, the rest whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument

E = TypeVar("E")

Wanted = Mapping[str, Sequence[str]]

TASK_STATES: dict[str, pb.TaskState.ValueType] = {
    name.removeprefix("TASK_STATE_").lower(): value for name, value in pb.TaskState.items()
}
ROLES: dict[str, pb.NodeRole.ValueType] = {
    "worker": pb.NODE_ROLE_WORKER,
    "manager": pb.NODE_ROLE_MANAGER,
}
# Docker's two; everybody who is in this cluster has been accepted.
MEMBERSHIPS: dict[str, bool] = {"accepted": True, "pending": False}
MODES: dict[str, str] = {
    "replicated": "replicated",
    "global": "global",
    "replicated-job": "replicated_job",
    "global-job": "global_job",
}


def read_filters(filters: Iterable[pb.Filter], accepted: frozenset[str]) -> Wanted:
    """The values by key. Raises InvalidArgument for a key that this list does not know."""
    wanted: dict[str, list[str]] = {}
    for item in filters:
        if item.key not in accepted:
            raise InvalidArgument(f"invalid filter '{item.key}'")
        wanted.setdefault(item.key, []).extend(item.values)
    return wanted


def has_prefix(text: str, prefixes: Sequence[str]) -> bool:
    """Whether there is no condition, or one of the prefixes fits."""
    return not prefixes or any(text.startswith(prefix) for prefix in prefixes)


def has_labels(labels: Mapping[str, str], conditions: Sequence[str]) -> bool:
    """Whether all of `key` (any value) and `key=value` hold."""
    for condition in conditions:
        key, _, value = condition.partition("=")
        if key not in labels or (value and labels[key] != value):
            return False
    return True


def read_words(wanted: Wanted, key: str, known: Mapping[str, E]) -> list[E]:
    """The values of a key whose words are fixed. Raises InvalidArgument for another word."""
    values = []
    for word in wanted.get(key, ()):
        if word.lower() not in known:
            raise InvalidArgument(f"invalid {key} filter: '{word}'")
        values.append(known[word.lower()])
    return values


def read_references(wanted: Wanted, key: str, find: Callable[[str], str]) -> list[str]:
    """The ids of the objects that a key names. Raises what `find` raises."""
    return [find(reference) for reference in wanted.get(key, ())]
