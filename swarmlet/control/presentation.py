"""What users get to see of stored objects: without secrets, with what only this manager knows.

Every object that leaves through control passes `Presenter.prepare`, which changes the
copy that is about to leave, never the stored object.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from swarmlet.api import pb
from swarmlet.raft.agreement import Agreement
from swarmlet.store.tables import StoredObject, T

OBJECTS_AT_A_TIME = 500
"""Objects copied before others get their turn on the event loop."""


class Presenter:
    """Prepares outgoing copies in place."""

    def __init__(self, agreement: Agreement) -> None:
        self._agreement = agreement

    def prepare(self, value: StoredObject) -> None:
        match value:
            case pb.Service():
                _hide_pull_auth(value.spec.task_template)
                _hide_pull_auth(value.previous_spec.task_template)
            case pb.Task():
                _hide_pull_auth(value.spec)
            case pb.Cluster():
                value.ClearField("root_ca")
                # The certificate goes with its key: a user who writes back what he read
                # would otherwise ask for a root without a key.
                if value.spec.HasField("ca_config"):
                    value.spec.ca_config.ClearField("signing_ca_key")
                    value.spec.ca_config.ClearField("signing_ca_cert")
            case pb.Secret():
                if value.spec.data:
                    value.spec.ClearField("data")
            case pb.Node():
                self._tell_manager_status(value)
            case _:
                pass

    def _tell_manager_status(self, node: pb.Node) -> None:
        """A manager's status is what agreement says now, not what was once stored."""
        stored = node.manager_status.reachability
        node.ClearField("manager_status")
        member = next((m for m in self._agreement.members if m.node_id == node.id), None)
        if member is None:
            return
        leader = self._agreement.leader
        node.manager_status.addr = member.address
        node.manager_status.leader = leader is not None and leader.node_id == node.id
        node.manager_status.reachability = self._reachability(node, stored)

    def _reachability(self, node: pb.Node, stored: pb.Reachability.ValueType) -> pb.Reachability.ValueType:
        if node.id == self._agreement.node_id:
            return pb.REACHABILITY_REACHABLE
        if self._agreement.is_leader:
            reached = node.id in self._agreement.reachable()
            return pb.REACHABILITY_REACHABLE if reached else pb.REACHABILITY_UNREACHABLE
        if self._agreement.leader is None and node.id in self._agreement.unreachable():
            return pb.REACHABILITY_UNREACHABLE
        # Only the leader talks to everybody; a follower goes by what it is told.
        lost = node.status.state == pb.NODE_STATE_DOWN or stored == pb.REACHABILITY_UNREACHABLE
        return pb.REACHABILITY_UNREACHABLE if lost else pb.REACHABILITY_REACHABLE


async def in_turns(values: Sequence[T]) -> AsyncIterator[T]:
    """The values, with a pause for the event loop now and then.

    Stored objects never change, so a list taken from the view stays one consistent state.
    """
    for number, value in enumerate(values, start=1):
        yield value
        if number % OBJECTS_AT_A_TIME == 0:
            await asyncio.sleep(0)


def _hide_pull_auth(template: pb.TaskSpec) -> None:
    # Clearing a field of an absent message would make it present.
    if template.container_spec.pull_auth:
        template.container_spec.ClearField("pull_auth")
