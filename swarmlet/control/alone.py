"""What the cluster's state must say when one manager goes on without the others.

Used offline, between two lives of a manager: after a disaster the managers that are
gone, or may come back with a past of their own, are workers until somebody promotes
them again.
"""

from __future__ import annotations

import random
from datetime import datetime

from swarmlet.api import pb
from swarmlet.api.ids import new_id
from swarmlet.control.initial import new_node
from swarmlet.store.objects import wrap
from swarmlet.store.tables import Tables


def alone_transaction(
    view: Tables, *, node_id: str, address: str, hostname: str, now: datetime, rng: random.Random
) -> pb.Transaction:
    """Makes `node_id` the only manager: its node is made when it is missing, all others become workers.

    `address` is the manager's host:port.
    """
    transaction = pb.Transaction(operation_id=new_id(rng))
    transaction.time.FromDatetime(now)
    for node in view.nodes:
        changed = pb.Node()
        changed.CopyFrom(node)
        if node.id == node_id:
            _make_leader(changed, address)
        else:
            changed.spec.role = pb.NODE_ROLE_WORKER
            changed.ClearField("manager_status")
        if changed != node:
            transaction.changes.add(
                kind=pb.CHANGE_KIND_UPDATE, object=wrap(changed), expected_version=node.version.index
            )
    if view.nodes.get(node_id) is None:
        own = new_node(
            node_id,
            pb.NODE_ROLE_MANAGER,
            availability=pb.NODE_AVAILABILITY_ACTIVE,
            hostname=hostname,
            address=address,
        )
        _make_leader(own, address)
        transaction.changes.add(kind=pb.CHANGE_KIND_CREATE, object=wrap(own))
    return transaction


def _make_leader(node: pb.Node, address: str) -> None:
    node.spec.role = pb.NODE_ROLE_MANAGER
    node.manager_status.addr = address
    node.manager_status.leader = True
    node.manager_status.reachability = pb.REACHABILITY_REACHABLE
