"""What a user is told before, or after, something that the swarm may not survive."""

from __future__ import annotations

from swarmlet.node.swarm import SwarmNode


def lone_manager_warnings(swarm: SwarmNode) -> list[str]:
    assert swarm.manager is not None
    raft = swarm.manager.raft
    if raft.leader is None or len(raft.members) == 1:
        return []
    return [
        f"the swarm had a leader and {len(raft.members)} managers: the others are workers of the new "
        "cluster as soon as they reach it, and what they agreed on without this manager is lost"
    ]


def manager_leave_warning(swarm: SwarmNode) -> str:
    assert swarm.manager is not None
    members = len(swarm.manager.raft.members)
    text = "You are attempting to leave the swarm on a node that is participating as a manager. "
    if members == 1:
        return text + (
            "Removing the last manager erases all current state of the swarm. "
            "Use `--force` to ignore this message."
        )
    remaining, needed = len(swarm.manager.raft.reachable() or range(members)) - 1, members // 2 + 1
    if remaining < needed:
        text += (
            f"Removing this node leaves {remaining} managers out of {members}. "
            "Without a Raft quorum your swarm will be inaccessible. "
        )
    return text + (
        "The only way to restore a swarm that has lost consensus is to reinitialize it with "
        "`--force-new-cluster`. Use `--force` to suppress this message."
    )
