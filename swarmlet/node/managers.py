"""What the leader keeps true about the managers themselves.

Writes each manager's status (leader, reachable, address) into its node object, and
takes the vote of nodes that are no longer to be managers.
"""

from __future__ import annotations

import asyncio

import structlog

from swarmlet.api import pb
from swarmlet.api.errors import SwarmletError
from swarmlet.raft.node import RaftNode
from swarmlet.store.store import Store, Transaction
from swarmlet.store.watch import Change, WatchOverflow

REACHABILITY_SECONDS = 0.5
"""How often the leader looks who answers; a manager's silence is no event."""

log = structlog.get_logger(__name__)


class ManagerKeeper:
    """Runs while this manager leads."""

    def __init__(self, store: Store, raft: RaftNode) -> None:
        self._store = store
        self._raft = raft

    async def run(self) -> None:
        """Works until cancelled; everything it does can be done again."""
        with self._store.watching(_concerns_nodes) as watcher:
            while True:
                try:
                    await self._store.update(self._write_statuses)
                    await self._remove_demoted()
                except SwarmletError as error:
                    log.warning("managers' status not written", error=str(error))
                try:
                    async with asyncio.timeout(REACHABILITY_SECONDS):
                        await watcher.next()
                except (TimeoutError, WatchOverflow):
                    continue

    def _write_statuses(self, transaction: Transaction) -> None:
        answering = self._raft.reachable()
        if not answering:
            return
        addresses = {m.node_id: m.address for m in self._raft.members}
        for node in transaction.view.nodes:
            wanted = self._status_of(node.id, addresses, answering)
            current = node.manager_status if node.HasField("manager_status") else None
            if wanted == current:
                continue
            changed = pb.Node()
            changed.CopyFrom(node)
            changed.ClearField("manager_status")
            if wanted is not None:
                changed.manager_status.CopyFrom(wanted)
            transaction.update(changed)

    def _status_of(
        self, node_id: str, addresses: dict[str, str], answering: frozenset[str]
    ) -> pb.ManagerStatus | None:
        if node_id not in addresses:
            return None
        return pb.ManagerStatus(
            leader=node_id == self._raft.node_id,
            reachability=pb.REACHABILITY_REACHABLE if node_id in answering else pb.REACHABILITY_UNREACHABLE,
            addr=addresses[node_id],
        )

    async def _remove_demoted(self) -> None:
        members = {m.node_id for m in self._raft.members}
        for node_id in members:
            node = self._store.view.nodes.get(node_id)
            if node is None or node.spec.role == pb.NODE_ROLE_MANAGER:
                continue
            if node_id == self._raft.node_id:
                await self._hand_over(members - {node_id})
                return
            log.info("removing a demoted manager from the group", node_id=node_id)
            await self._raft.remove_member(node_id)

    async def _hand_over(self, others: set[str]) -> None:
        for target in sorted(others & self._raft.reachable()):
            if await self._raft.transfer_leadership(target):
                log.info("asked another manager to lead, as this one is demoted", target=target)
                return


def _concerns_nodes(change: Change) -> bool:
    return isinstance(change.current, pb.Node)
