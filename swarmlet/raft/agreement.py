"""What the rest of the house sees of raft: an interface that fits on a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from swarmlet.api import pb


class StateMachine(Protocol):
    """What the log's entries are applied to, in the same order on every manager."""

    def apply(self, index: int, data: bytes) -> object:
        """Applies one entry. The result goes to whoever proposed it here.

        Deterministic: whatever depends on time or chance is in the data. An exception
        is a defect and stops this manager; a refusal is a result.
        """

    def snapshot(self) -> Callable[[], bytes]:
        """A consistent copy taken now (fast); the function returned encodes it in a thread."""

    def restore(self, index: int, data: bytes) -> None:
        """Replaces the whole state by what a snapshot's function returned."""


class Agreement(Protocol):
    """One manager's view of the group."""

    @property
    def node_id(self) -> str: ...

    @property
    def is_leader(self) -> bool:
        """Whether this manager leads and has applied everything that its predecessors committed."""

    @property
    def term(self) -> int: ...

    @property
    def leader(self) -> pb.RaftMember | None:
        """Who leads, as far as known here; None while there is nobody."""

    @property
    def members(self) -> Sequence[pb.RaftMember]:
        """The voting managers, this one included, as in the log."""

    def reachable(self) -> frozenset[str]:
        """Node ids of the members that answer this leader (with itself); empty when not leading."""

    def unreachable(self) -> Mapping[str, float]:
        """Node ids of the members that this manager itself cannot reach, and for how many seconds.

        On any manager, by its own connections and, while nobody leads, by who answers.
        """

    async def propose(self, data: bytes) -> object:
        """Commits an entry and returns what the state machine's `apply` returned for it here.

        Raises NotLeader or Unavailable when it was certainly not done, UnknownOutcome
        when it may have been.
        """

    async def barrier(self) -> None:
        """Returns once everything committed before the call is applied here (leader only).

        Raises NotLeader or Unavailable, within one election timeout, when this manager
        can no longer be sure to lead.
        """

    async def leadership(self, seen: int) -> int:
        """Waits until leadership changed since the count `seen`; returns the count now.

        Start with 0. The count rises whenever is_leader, leader or term changed.
        """

    async def wait_applied(self, index: int) -> None:
        """Returns once the entry at `index` is applied here."""
