"""What a user is told while nobody leads: which managers are missing, since when, what to do.

Goes by what this one manager sees. Used by `forward`; the errors are known to `grpc`,
which marks them on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from swarmlet.api import pb
from swarmlet.api.errors import Unavailable, UnknownOutcome
from swarmlet.raft.agreement import Agreement

CERTAIN_SECONDS = 10.0
"""After a majority was out of reach for so long, nobody is made to wait for it any more."""

NO_LEADER = (
    "The swarm does not have a leader. It's possible that too few managers are online. "
    "Make sure more than half of the managers are online."
)
OUTCOME_UNKNOWN = (
    "No answer from the swarm's leader: whether the change was made is not known. Look before you repeat it."
)


class MajorityLost(Unavailable):
    """Nothing was done: this manager cannot reach enough others for there to be a leader."""


class MajorityLostMeanwhile(UnknownOutcome):
    """The majority went out of reach while a write was under way."""


def is_certainly_lost(agreement: Agreement) -> bool:
    """Whether a majority has been out of reach for so long that waiting for it has no prospect."""
    lost = sorted(agreement.unreachable().values(), reverse=True)
    enough = len(agreement.members) - _quorum(agreement.members) + 1
    return agreement.leader is None and len(lost) >= enough and lost[enough - 1] >= CERTAIN_SECONDS


def no_leader(
    agreement: Agreement, name_of: Callable[[str], str], *, is_uncertain: bool
) -> Unavailable | UnknownOutcome:
    """The error for somebody who waited for a leader in vain.

    `name_of` gives a manager's hostname; `is_uncertain`: a write may have been done.
    """
    members = agreement.members
    lost = agreement.unreachable()
    is_majority_lost = len(members) - len(lost) < _quorum(members)
    if is_uncertain and not is_majority_lost:
        return UnknownOutcome(OUTCOME_UNKNOWN)
    text = f"{OUTCOME_UNKNOWN} {NO_LEADER}" if is_uncertain else NO_LEADER
    if lost:
        text = f"{text} {_missing(members, lost, name_of)}; {_remedy(members, lost)}"
    if not is_majority_lost:
        return Unavailable(text)
    return MajorityLostMeanwhile(text) if is_uncertain else MajorityLost(text)


def _quorum(members: Sequence[pb.RaftMember]) -> int:
    return len(members) // 2 + 1


def _missing(
    members: Sequence[pb.RaftMember], lost: Mapping[str, float], name_of: Callable[[str], str]
) -> str:
    listed = sorted(
        f"{name_of(member.node_id)} at {member.address} for {_span(lost[member.node_id])}"
        for member in members
        if member.node_id in lost
    )
    verb = "is" if len(lost) == 1 else "are"
    return f"{len(lost)} of {len(members)} managers {verb} unreachable ({', '.join(listed)})"


def _remedy(members: Sequence[pb.RaftMember], lost: Mapping[str, float]) -> str:
    needed = _quorum(members) - (len(members) - len(lost))
    if needed <= 0:
        return "the others are enough to elect a leader: try again shortly"
    if len(lost) == 1:
        back, gone = "it", "it is"
    elif needed == len(lost):
        back, gone = "them", "they are"
    else:
        back, gone = f"{'one' if needed == 1 else needed} of them", "they are"
    return (
        f'bring {back} back, or, if {gone} lost for good, run "swarmlet swarm init --force-new-cluster" '
        "on this manager; --stale shows its last known state"
    )


def _span(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{seconds:.0f} s"
