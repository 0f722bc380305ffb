"""When a write is done, refused, or left open."""

from __future__ import annotations

import random

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import NotFound, NotLeader, SwarmletError, Unavailable, UnknownOutcome
from swarmlet.control.writes import Writer
from swarmlet.store.store import Transaction
from tests.builders import make_store
from tests.unit.control.fakes import FakeAgreement


def refuse(_transaction: Transaction) -> None:
    raise NotFound("not there")


@pytest.mark.parametrize("error", [NotLeader("two:2377"), Unavailable("later"), UnknownOutcome("perhaps")])
async def test_what_agreement_says_is_passed_on_without_asking_again(error: SwarmletError) -> None:
    class Failing:
        proposals = 0

        async def propose(self, data: bytes) -> object:
            self.proposals += 1
            raise error

    store, agreement, proposer = make_store(), FakeAgreement(), Failing()
    store.attach(proposer)
    writer = Writer(store, agreement=agreement, rng=random.Random(1))

    with pytest.raises(type(error)):
        await writer.commit("once", lambda t: t.create(pb.Config(id="c")))

    assert (proposer.proposals, agreement.barriers) == (1, 0)


async def test_a_refusal_stands_when_the_state_was_the_newest() -> None:
    store, agreement = make_store(), FakeAgreement()
    writer = Writer(store, agreement=agreement, rng=random.Random(1))

    with pytest.raises(NotFound, match="not there"):
        await writer.commit("once", refuse)

    assert agreement.barriers == 1


async def test_a_manager_that_no_longer_leads_does_not_refuse() -> None:
    store, agreement = make_store(), FakeAgreement()
    writer = Writer(store, agreement=agreement, rng=random.Random(1))

    async def barrier() -> None:
        raise NotLeader("two:2377")

    agreement.barrier = barrier  # type: ignore[method-assign]

    with pytest.raises(NotLeader):
        await writer.commit("once", refuse)


async def test_the_index_of_a_write_is_where_it_was_done() -> None:
    store = make_store()
    writer = Writer(store, agreement=FakeAgreement(), rng=random.Random(1))

    first = await writer.commit("first", lambda t: t.create(pb.Config(id="a")))
    await writer.commit("second", lambda t: t.create(pb.Config(id="b")))

    assert await writer.commit("first", refuse) == first
    assert await writer.commit("nothing", lambda t: None) == store.applied_index
