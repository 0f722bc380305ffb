"""How control commits: once per operation id, on the leader, and never refused from old state.

The rooms of control describe a change; this module decides when it is done.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from swarmlet.api.errors import NotLeader, SwarmletError, Unavailable, UnknownOutcome
from swarmlet.api.ids import new_id
from swarmlet.raft.agreement import Agreement
from swarmlet.store.store import Store, Transaction


class Writer:
    """Commits the changes that users ask for. Calls may run at the same time."""

    def __init__(self, store: Store, *, agreement: Agreement, rng: random.Random) -> None:
        self._store = store
        self._agreement = agreement
        self._rng = rng

    def operation_id(self, asked: str) -> str:
        """The caller's operation id, or a fresh one where he gave none."""
        return asked or new_id(self._rng)

    async def commit(self, operation_id: str, change: Callable[[Transaction], None]) -> int:
        """Commits what `change` does; returns the raft index at which it is done.

        An operation that was already done is not done again: its index is returned. A
        change that turns out to be none has the index of the state in which it was
        none. Raises what `change` raises, NotLeader, Unavailable or UnknownOutcome.
        """
        if not self._agreement.is_leader:
            leader = self._agreement.leader
            raise NotLeader(leader.address if leader is not None else "")

        def once(transaction: Transaction) -> None:
            if self._store.operation_index(operation_id) is None:
                change(transaction)

        before = self._store.applied_index
        try:
            await self._store.update(once, operation_id=operation_id)
        except (NotLeader, Unavailable, UnknownOutcome):
            raise
        except SwarmletError:
            # A leader that was replaced without noticing must not refuse, from its old
            # state, what the cluster's real state allows.
            await self._agreement.barrier()
            if self._store.applied_index == before:
                raise
            await self._store.update(once, operation_id=operation_id)
        index = self._store.operation_index(operation_id)
        return self._store.applied_index if index is None else index
