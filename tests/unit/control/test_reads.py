"""Reads show nothing older than the moment they were asked for, unless asked to; or say why not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import pytest

from swarmlet.api import pb
from swarmlet.api.errors import NotLeader, SwarmletError, Unavailable, UnknownOutcome
from swarmlet.api.v1 import control_pb2_grpc
from swarmlet.api.wire import MAJORITY_LOST_TRAILER, STALE_METADATA
from swarmlet.control import forward as forward_module
from swarmlet.control.absent import AbsentControl
from swarmlet.control.majority import NO_LEADER, OUTCOME_UNKNOWN, MajorityLost, MajorityLostMeanwhile
from swarmlet.control.terms import Terms
from tests.builders import a_node, a_service, a_task
from tests.unit.control.fakes import serving
from tests.unit.control.fronts import Front, Memory, a_front, a_leader

STALE = Terms(is_stale=True)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "DEADLINE_SECONDS", 5.0)
    monkeypatch.setattr(forward_module, "PAUSE_SECONDS", 0.02)


class Told(AbsentControl):
    """A leader that answers how new a read must be as the script says, the last answer for ever."""

    def __init__(self, *answers: int | SwarmletError | Callable[[], Awaitable[int]]) -> None:
        super().__init__("")
        self._answers = list(answers)
        self.asked = asyncio.Event()

    async def read_index(self, request: pb.ReadIndexRequest) -> pb.ReadIndexResponse:
        self.asked.set()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, SwarmletError):
            raise answer
        return pb.ReadIndexResponse(index=answer if isinstance(answer, int) else await answer())


class Applying:
    """Stands in for an agreement's `wait_applied`: applies when the test says so."""

    def __init__(self, front: Front) -> None:
        self.waits: list[int] = []
        self.is_waited = asyncio.Event()
        self.may_go_on = asyncio.Event()
        front.agreement.wait_applied = self.wait_applied  # type: ignore[method-assign]

    async def wait_applied(self, index: int) -> None:
        self.waits.append(index)
        self.is_waited.set()
        await self.may_go_on.wait()


def on_two(front: Front, *answers: int | SwarmletError | Callable[[], Awaitable[int]]) -> Told:
    told = Told(*answers)
    front.others["two"] = Memory(told)
    return told


async def hang() -> int:
    return await asyncio.Event().wait() or 0


async def ids(front: Front, terms: Terms | None = None) -> list[str]:
    door = front.door if terms is None else front.door.under(terms)
    return [s.id for s in (await door.list_services(pb.ListServicesRequest())).services]


async def read_all(front: Front) -> None:
    web_id = (await front.door.list_services(pb.ListServicesRequest())).services[0].id
    assert web_id == "w"
    assert (await front.door.get_service(pb.GetServiceRequest(reference="web"))).service.id == "w"
    assert (await front.door.list_tasks(pb.ListTasksRequest())).tasks[0].id == "t"
    assert (await front.door.get_task(pb.GetTaskRequest(reference="t"))).task.id == "t"
    assert (await front.door.list_nodes(pb.ListNodesRequest())).nodes[0].id == "one"
    assert (await front.door.get_node(pb.GetNodeRequest(reference="self"))).node.id == "one"
    with pytest.raises(Unavailable, match="does not know the cluster yet"):
        await front.door.get_cluster(pb.GetClusterRequest())
    async with aclosing(front.door.watch(pb.WatchRequest(kinds=["service"]))) as responses:
        assert len((await anext(responses)).events) == 1


def full(leader: str | None) -> Front:
    web = a_service("web", id="w")
    return a_front(web, a_task(web, id="t"), a_node("alpha", id="one"), leader=leader)


# ---- how new


async def test_the_leader_makes_sure_that_it_leads_before_every_read() -> None:
    front = full("one")

    await read_all(front)

    assert front.agreement.barriers == 8


async def test_a_follower_reads_its_own_state_once_that_is_as_new_as_the_leader_says() -> None:
    front = full("two")
    on_two(front, 7)

    await read_all(front)

    assert front.agreement.applied_waits == [7] * 8
    assert front.agreement.barriers == 0


async def test_a_followers_read_waits_for_what_it_has_not_applied_yet() -> None:
    front = full("two")
    on_two(front, 7)
    applying = Applying(front)
    reading = asyncio.create_task(ids(front))
    await applying.is_waited.wait()

    assert not reading.done()
    await front.own.store.update(lambda transaction: transaction.delete(pb.Service, "w"))
    applying.may_go_on.set()

    assert await reading == []
    assert applying.waits == [7]


async def test_a_watch_begins_with_a_state_that_is_new() -> None:
    front = full("two")
    on_two(front, 7)
    applying = Applying(front)
    async with aclosing(front.door.watch(pb.WatchRequest(kinds=["service"]))) as responses:
        first = asyncio.ensure_future(anext(responses))
        await applying.is_waited.wait()
        await front.own.store.update(lambda transaction: transaction.delete(pb.Service, "w"))

        applying.may_go_on.set()

        assert not (await first).events


async def test_the_leader_answers_with_what_it_has_applied_when_it_is_sure_to_lead() -> None:
    front = a_front(leader="two")
    leader = a_leader(front)

    index = (await front.door.read_index(pb.ReadIndexRequest())).index

    assert index == leader.store.applied_index
    assert leader.agreement.barriers == 1


# ---- when the leader changes


@pytest.mark.parametrize(
    "error", [NotLeader("three:2377"), Unavailable("does not answer"), UnknownOutcome("no answer")]
)
async def test_a_read_is_tried_again_until_a_leader_is_sure(error: SwarmletError) -> None:
    front = full("two")
    on_two(front, error, error, 9)

    assert await ids(front) == ["w"]
    assert front.agreement.applied_waits == [9]


async def test_a_leader_lost_in_the_middle_of_a_read_is_left_for_the_next() -> None:
    front = full("two")
    told = on_two(front, hang)
    front.others["three"] = Memory(Told(12))
    reading = asyncio.create_task(ids(front))
    await told.asked.wait()

    front.agreement.elect(None)
    front.agreement.elect("three")

    assert await reading == ["w"]
    assert front.agreement.applied_waits == [12]


async def test_a_leader_that_is_cut_off_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "DEADLINE_SECONDS", 0.1)
    front = full("one")

    async def cannot_be_sure() -> None:
        front.agreement.elect(None)
        raise Unavailable("a majority of the managers does not answer")

    front.agreement.barrier = cannot_be_sure  # type: ignore[method-assign]

    with pytest.raises(Unavailable) as caught:
        await ids(front)

    assert caught.value.message == NO_LEADER


async def test_a_manager_that_does_not_catch_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "DEADLINE_SECONDS", 0.05)
    front = full("two")
    on_two(front, 7)
    Applying(front)

    with pytest.raises(Unavailable, match="has not caught up"):
        await ids(front)


# ---- stale on request


async def test_a_stale_read_asks_nobody() -> None:
    front = full(None)

    assert await ids(front, STALE) == ["w"]
    assert (front.agreement.barriers, front.agreement.applied_waits) == (0, [])


async def test_a_stale_watch_begins_at_once() -> None:
    front = full(None)

    async with aclosing(front.door.under(STALE).watch(pb.WatchRequest(kinds=["service"]))) as responses:
        assert len((await anext(responses)).events) == 1


async def test_a_stale_list_shows_managers_as_this_one_reaches_them() -> None:
    front = a_front(
        a_node("alpha", id="one"), a_node("beta", id="two"), a_node("gamma", id="three"), leader=None
    )
    front.agreement.lost = {"two": 3.0}

    nodes = (await front.door.under(STALE).list_nodes(pb.ListNodesRequest())).nodes

    shown = {node.id: node.manager_status.reachability for node in nodes}
    assert shown == {
        "one": pb.REACHABILITY_REACHABLE,
        "two": pb.REACHABILITY_UNREACHABLE,
        "three": pb.REACHABILITY_REACHABLE,
    }


# ---- no majority


def without_majority(seconds: float) -> Front:
    front = a_front(a_node("alpha", id="one"), a_node("beta", id="two"), leader=None)
    front.agreement.lost = {"two": seconds, "three": seconds + 1}
    return front


LOST_TEXT = (
    f"{NO_LEADER} 2 of 3 managers are unreachable (beta at two:2377 for 35 s, three at three:2377 for 36 s); "
    'bring one of them back, or, if they are lost for good, run "swarmlet swarm init --force-new-cluster" '
    "on this manager; --stale shows its last known state"
)


async def test_a_majority_long_gone_is_said_at_once_with_who_and_since_when_and_what_to_do() -> None:
    front = without_majority(35)

    with pytest.raises(MajorityLost) as read:
        await ids(front)
    with pytest.raises(MajorityLost) as written:
        await front.create()

    assert read.value.message == LOST_TEXT
    assert written.value.message == LOST_TEXT


async def test_a_majority_just_gone_is_waited_for() -> None:
    front = without_majority(2)
    reading = asyncio.create_task(ids(front))
    await asyncio.sleep(0.05)

    assert not reading.done()
    front.agreement.lost = {}
    front.agreement.elect("one")

    assert await reading == []


async def test_a_majority_just_gone_is_waited_for_no_longer_than_the_caller_waits() -> None:
    front = without_majority(2)

    with pytest.raises(MajorityLost, match="2 of 3 managers are unreachable"):
        await ids(front, Terms(seconds=0.05))


async def test_a_write_whose_outcome_is_unknown_says_that_first() -> None:
    front = without_majority(35)
    front.agreement.elect("two")

    class Losing(AbsentControl):
        async def create_service(self, request: pb.CreateServiceRequest) -> pb.CreateServiceResponse:
            front.agreement.elect(None)
            raise UnknownOutcome("lost")

    front.others["two"] = Memory(Losing(""))

    with pytest.raises(MajorityLostMeanwhile) as caught:
        await front.create()

    assert caught.value.message == f"{OUTCOME_UNKNOWN} {LOST_TEXT}"


async def test_one_missing_manager_of_three_is_no_disaster() -> None:
    front = a_front(leader=None)
    front.agreement.lost = {"three": 200}

    with pytest.raises(Unavailable) as caught:
        await ids(front, Terms(seconds=0.05))

    assert not isinstance(caught.value, MajorityLost)
    assert (
        "1 of 3 managers is unreachable (three at three:2377 for 3 min); the others" in caught.value.message
    )
    assert "force-new-cluster" not in caught.value.message


# ---- over gRPC


async def test_the_wire_carries_stale_and_marks_a_lost_majority() -> None:
    front = without_majority(35)
    async with serving(front.door) as address, grpc.aio.insecure_channel(address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)

        answer = await stub.ListNodes(pb.ListNodesRequest(), metadata=((STALE_METADATA, "1"),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListNodes(pb.ListNodesRequest(), timeout=5)

    assert len(answer.nodes) == 2
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == LOST_TEXT
    trailers: Any = caught.value.trailing_metadata() or ()
    assert MAJORITY_LOST_TRAILER in dict(trailers)


async def test_a_caller_who_waits_briefly_is_told_why_before_his_time_is_over() -> None:
    front = without_majority(2)
    async with serving(front.door) as address, grpc.aio.insecure_channel(address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListServices(pb.ListServicesRequest(), timeout=1)

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "2 of 3 managers are unreachable" in (caught.value.details() or "")
