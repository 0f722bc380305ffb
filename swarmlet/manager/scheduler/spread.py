"""Which of the nodes that can run a task does.

Placement preferences make a tree: each level divides the nodes by the value of a
label, and a task goes to the branch with the fewest tasks of its service. In a branch
it goes to the node with the fewest tasks of the service, then the fewest tasks; ties
are broken by a hash, always in the same way. Nodes on which the service keeps failing
come last.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from datetime import datetime

from swarmlet.api import pb
from swarmlet.api.constraints import ENGINE_LABEL_PREFIX, NODE_LABEL_PREFIX, node_fact
from swarmlet.manager.scheduler.filters import Pipeline
from swarmlet.manager.scheduler.ledger import NodeAccount

FAILURES_MAX = 5
"""From so many recent failures on, a node is avoided."""

_Rank = tuple[int, int, int, bytes]


class Branch:
    """Nodes that are alike in every preference so far, or branches of them."""

    def __init__(
        self,
        task: pb.Task,
        accounts: Iterable[NodeAccount],
        preferences: list[str],
        pipeline: Pipeline,
        now: datetime,
    ) -> None:
        self._service_id = task.service_id
        self._children: list[Branch] = []
        self._heap: list[tuple[_Rank, NodeAccount]] = []
        self._failures: dict[str, int] = {}
        accounts = list(accounts)
        self.tasks = sum(account.tasks_by_service[task.service_id] for account in accounts)
        if preferences:
            groups: dict[str, list[NodeAccount]] = {}
            for account in accounts:
                groups.setdefault(node_fact(account.node, preferences[0]) or "", []).append(account)
            self._children = [Branch(task, groups[v], preferences[1:], pipeline, now) for v in sorted(groups)]
            return
        for account in filter(pipeline.passes, accounts):
            failures = account.recent_failures(task, now)
            self._failures[account.node.id] = failures if failures >= FAILURES_MAX else 0
            self._heap.append((self._rank(account), account))
        heapq.heapify(self._heap)

    def take(self, task: pb.Task, pipeline: Pipeline) -> NodeAccount | None:
        """The best node that still passes, with the task booked on it; None when there is none."""
        for child in sorted(self._children, key=lambda child: child.tasks):
            account = child.take(task, pipeline)
            if account is not None:
                self.tasks += 1
                return account
        if not self._heap:
            return None
        account = self._heap[0][1]
        account.add(task)
        self.tasks += 1
        if pipeline.passes(account):
            heapq.heapreplace(self._heap, (self._rank(account), account))
        else:
            # It has no room for another one, and gets none within this pass.
            heapq.heappop(self._heap)
        return account

    def _rank(self, account: NodeAccount) -> _Rank:
        return (
            self._failures[account.node.id],
            account.tasks_by_service[self._service_id],
            account.tasks,
            account.tie_breaker,
        )


def spread_labels(task: pb.Task) -> list[str]:
    """The labels over which the service is spread; what is no label is passed over, as SwarmKit does."""
    descriptors = (p.spread.spread_descriptor for p in task.spec.placement.preferences)
    return [d for d in descriptors if d.lower().startswith((NODE_LABEL_PREFIX, ENGINE_LABEL_PREFIX))]
