"""Nodes: listed, labelled, drained, promoted, demoted and removed from the cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime

from swarmlet.api import pb, taskstate
from swarmlet.api.errors import Conflict, FailedPrecondition, InvalidArgument
from swarmlet.control import filters
from swarmlet.control.presentation import Presenter, in_turns
from swarmlet.control.references import find_node
from swarmlet.control.writes import Writer
from swarmlet.raft.agreement import Agreement
from swarmlet.store.store import TRANSACTION_BYTES_MAX, Store, Transaction
from swarmlet.store.tables import Tables

ORPHANS_BYTES_MAX = TRANSACTION_BYTES_MAX // 2
ORPHANED_MESSAGE = "Task belonged to a node that has been deleted"
_FILTERS = frozenset({"id", "name", "label", "node.label", "role", "membership"})


class Nodes:
    """The node methods of Control."""

    def __init__(
        self,
        store: Store,
        *,
        writer: Writer,
        presenter: Presenter,
        agreement: Agreement,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._writer = writer
        self._presenter = presenter
        self._agreement = agreement
        self._now = now

    def find(self, view: Tables, reference: str) -> pb.Node:
        """Raises NotFound or InvalidArgument."""
        return find_node(view, reference, own_id=self._agreement.node_id)

    async def list_nodes(self, request: pb.ListNodesRequest) -> pb.ListNodesResponse:
        wanted = filters.read_filters(request.filters, _FILTERS)
        roles = filters.read_words(wanted, "role", filters.ROLES)
        memberships = filters.read_words(wanted, "membership", filters.MEMBERSHIPS)
        nodes = [
            node
            for node in self._store.view.nodes
            if filters.has_prefix(node.id, wanted.get("id", ()))
            and filters.has_prefix(node.description.hostname, wanted.get("name", ()))
            and filters.has_labels(node.description.engine.labels, wanted.get("label", ()))
            and filters.has_labels(node.spec.labels, wanted.get("node.label", ()))
            and (not roles or node.spec.role in roles)
            and (not memberships or True in memberships)
        ]
        response = pb.ListNodesResponse()
        async for node in in_turns(nodes):
            shown = response.nodes.add()
            shown.CopyFrom(node)
            self._presenter.prepare(shown)
        return response

    async def get(self, request: pb.GetNodeRequest) -> pb.GetNodeResponse:
        response = pb.GetNodeResponse(node=self.find(self._store.view, request.reference))
        self._presenter.prepare(response.node)
        return response

    async def update(self, request: pb.UpdateNodeRequest) -> pb.UpdateNodeResponse:
        _validate_spec(request.spec)
        node_id = ""

        def update(transaction: Transaction) -> None:
            nonlocal node_id
            current = self.find(transaction.view, request.node_id)
            node_id = current.id
            if current.version.index != request.version:
                raise Conflict("update out of sequence")
            was_manager = current.spec.role == pb.NODE_ROLE_MANAGER
            if was_manager and request.spec.role == pb.NODE_ROLE_WORKER:
                self._check_demotion(transaction.view, current)
            changed = pb.Node()
            changed.CopyFrom(current)
            changed.spec.CopyFrom(request.spec)
            if changed != current:
                transaction.update(changed)

        index = await self._writer.commit(self._writer.operation_id(request.operation_id), update)
        node = self.find(self._store.view, node_id or request.node_id)
        response = pb.UpdateNodeResponse(node=node, index=index)
        self._presenter.prepare(response.node)
        return response

    async def remove(self, request: pb.RemoveNodeRequest) -> pb.RemoveNodeResponse:
        removed_ids: list[str] = []

        def remove(transaction: Transaction) -> None:
            node = self.find(transaction.view, request.node_id)
            if any(member.node_id == node.id for member in self._agreement.members):
                raise FailedPrecondition(
                    f"node {node.id} is a cluster manager and is a member of the raft cluster. "
                    "It must be demoted to worker before removal"
                )
            if node.status.state == pb.NODE_STATE_READY and not request.force:
                raise FailedPrecondition(f"node {node.id} is not down and can't be removed")
            removed_ids.append(node.id)
            transaction.delete(pb.Node, node.id)
            for task in self._unended_tasks(node.id):
                # All of them, unless they are too many for one transaction.
                if transaction.size_bytes < ORPHANS_BYTES_MAX:
                    transaction.update(self._orphaned(task))

        index = await self._writer.commit(self._writer.operation_id(request.operation_id), remove)
        for node_id in removed_ids[-1:]:
            await self._orphan_rest(node_id)
        return pb.RemoveNodeResponse(index=index)

    def _check_demotion(self, view: Tables, node: pb.Node) -> None:
        managers = [n for n in view.nodes if n.spec.role == pb.NODE_ROLE_MANAGER]
        if len(managers) == 1:
            raise FailedPrecondition("attempting to demote the last manager of the swarm")
        remaining = [m.node_id for m in self._agreement.members if m.node_id != node.id]
        reached = sum(node_id in self._agreement.reachable() for node_id in remaining)
        if reached < len(remaining) // 2 + 1:
            raise FailedPrecondition(
                "can't remove member from the raft: this would result in a loss of quorum"
            )

    def _unended_tasks(self, node_id: str) -> list[pb.Task]:
        tasks = self._store.view.tasks.find("node", node_id)
        return [task for task in tasks if not taskstate.is_terminal(task.status.state)]

    def _orphaned(self, task: pb.Task) -> pb.Task:
        """The task as nobody will ever report on it again."""
        orphan = pb.Task()
        orphan.CopyFrom(task)
        orphan.status.Clear()
        orphan.status.state = pb.TASK_STATE_ORPHANED
        orphan.status.message = ORPHANED_MESSAGE
        orphan.status.timestamp.FromDatetime(self._now())
        return orphan

    async def _orphan_rest(self, node_id: str) -> None:
        units = [
            functools.partial(Transaction.update, value=self._orphaned(task))
            for task in self._unended_tasks(node_id)
        ]
        await self._store.batch(units)


def _validate_spec(spec: pb.NodeSpec) -> None:
    if spec.role not in pb.NodeRole.values():
        raise InvalidArgument(f"invalid Role: {spec.role}")
    if spec.availability not in pb.NodeAvailability.values():
        raise InvalidArgument(f"invalid Availability: {spec.availability}")
