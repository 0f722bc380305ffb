"""Writes find the leader, whoever it is by now, and are done once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import grpc.aio
import pytest

from swarmlet.api import pb
from swarmlet.api.errors import Conflict, NotFound, NotLeader, SwarmletError, Unavailable, UnknownOutcome
from swarmlet.api.v1 import control_pb2_grpc
from swarmlet.control import forward as forward_module
from swarmlet.control.absent import AbsentControl
from swarmlet.control.majority import NO_LEADER, OUTCOME_UNKNOWN
from tests.builders import a_node, a_service
from tests.unit.control.fakes import Desk, FakeAgreement, a_spec, make_desk, serving
from tests.unit.control.fronts import MEMBERS, Front, Memory, a_front, a_leader

BOTH = pb.LogOptions(stdout=True, stderr=True)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "DEADLINE_SECONDS", 5.0)
    monkeypatch.setattr(forward_module, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(forward_module, "APPLIED_SECONDS", 0.2)


class Scripted(AbsentControl):
    """Does before each write what the script says next; then asks the control behind it."""

    def __init__(self, behind: Desk, *steps: Callable[[], Awaitable[None]], after: bool = False) -> None:
        super().__init__("")
        self._behind = behind
        self._steps = list(steps)
        self._after = after
        self.operations: list[str] = []

    async def create_service(self, request: pb.CreateServiceRequest) -> pb.CreateServiceResponse:
        self.operations.append(request.operation_id)
        step = self._steps.pop(0) if self._steps else None
        if step is not None and not self._after:
            await step()
        answer = await self._behind.control.create_service(request)
        if step is not None and self._after:
            await step()
        return answer


def failing(error: SwarmletError) -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        raise error

    return fail


async def hang() -> None:
    await asyncio.Event().wait()


def names(desk: Desk) -> list[str]:
    return [s.spec.name for s in desk.store.view.services]


# ---- who does it


async def test_the_leader_does_its_own_writes() -> None:
    front = a_front(leader="one")

    answer = await front.create()

    assert names(front.own) == ["web"]
    assert front.agreement.applied_waits == [answer.index]


async def test_a_follower_has_the_leader_write_and_waits_until_it_can_read_it() -> None:
    front = a_front()
    leader = a_leader(front)

    answer = await front.create()

    assert names(leader) == ["web"]
    assert names(front.own) == []
    assert front.agreement.applied_waits == [answer.index]


async def test_every_write_is_forwarded() -> None:
    front = a_front()
    leader = make_desk(
        a_service("web", id="w"),
        a_node("beta", id="n", state=pb.NODE_STATE_DOWN),
        pb.Cluster(id="c", spec=pb.ClusterSpec(name="default")),
        agreement=FakeAgreement("two", MEMBERS),
    )
    front.others["two"] = Memory(leader.control)

    await front.door.update_service(
        pb.UpdateServiceRequest(service_id="web", version=1, spec=a_spec(image="nginx:2"))
    )
    await front.door.remove_service(pb.RemoveServiceRequest(service_id="web"))
    await front.door.update_node(
        pb.UpdateNodeRequest(node_id="n", version=1, spec=pb.NodeSpec(labels={"a": "b"}))
    )
    await front.door.remove_node(pb.RemoveNodeRequest(node_id="n"))
    spec = pb.ClusterSpec(name="default", labels={"a": "b"})
    await front.door.update_cluster(pb.UpdateClusterRequest(version=1, spec=spec))

    assert not names(leader)
    assert not len(leader.store.view.nodes)
    cluster = leader.store.view.cluster()
    assert cluster is not None
    assert cluster.spec.labels == {"a": "b"}


@pytest.mark.parametrize("error", [NotFound("none"), Conflict("update out of sequence")])
async def test_a_leaders_refusal_is_not_repeated(error: SwarmletError) -> None:
    front = a_front()
    leader = a_leader(front)
    script = Scripted(leader, failing(error))
    front.others["two"] = Memory(script)

    with pytest.raises(type(error), match=error.message):
        await front.create()

    assert len(script.operations) == 1


# ---- when the leader changes


async def test_without_a_leader_a_write_waits_for_one() -> None:
    front = a_front(leader=None)
    leader = a_leader(front)
    writing = asyncio.create_task(front.create())
    await asyncio.sleep(0)

    front.agreement.elect("two")
    await writing

    assert names(leader) == ["web"]


async def test_a_manager_that_becomes_leader_itself_does_the_write() -> None:
    front = a_front(leader=None)
    writing = asyncio.create_task(front.create())
    await asyncio.sleep(0)

    front.agreement.elect("one")
    await writing

    assert names(front.own) == ["web"]


@pytest.mark.parametrize(
    "error", [NotLeader("three:2377"), Unavailable("busy"), UnknownOutcome("the leader was lost")]
)
async def test_a_write_is_repeated_with_its_operation_id_until_it_is_done(error: SwarmletError) -> None:
    front = a_front()
    leader = a_leader(front)
    script = Scripted(leader, failing(error), failing(error))
    front.others["two"] = Memory(script)

    await front.create()

    assert names(leader) == ["web"]
    assert len(script.operations) == 3
    assert len(set(script.operations)) == 1
    assert script.operations[0]


async def test_the_callers_own_operation_id_is_used() -> None:
    front = a_front()
    leader = a_leader(front)
    script = Scripted(leader, failing(UnknownOutcome("lost")))
    front.others["two"] = Memory(script)

    await front.create(operation_id="mine")

    assert script.operations == ["mine", "mine"]


async def test_a_write_of_which_only_the_answer_was_lost_is_done_once() -> None:
    front = a_front()
    leader = a_leader(front)
    front.others["two"] = Memory(Scripted(leader, failing(UnknownOutcome("answer lost")), after=True))

    answer = await front.create()

    assert names(leader) == ["web"]
    service = leader.store.view.services.get(answer.service_id)
    assert service is not None
    assert service.version.index == answer.index


async def test_a_leader_that_hangs_is_left_when_another_one_is_elected() -> None:
    front = a_front()
    front.others["two"] = Memory(Scripted(a_leader(front), hang))
    successor = a_leader(front, "three")
    writing = asyncio.create_task(front.create())
    await asyncio.sleep(0.01)

    front.agreement.elect(None)
    front.agreement.elect("three")
    await writing

    assert names(successor) == ["web"]


# ---- when it does not come to an end


async def test_no_leader_in_time_is_said_in_dockers_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forward_module, "DEADLINE_SECONDS", 0.05)
    front = a_front(leader=None)

    with pytest.raises(Unavailable) as caught:
        await front.create()

    assert caught.value.message == NO_LEADER


async def test_an_unknown_outcome_is_not_called_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "DEADLINE_SECONDS", 0.05)
    front = a_front()
    leader = a_leader(front)

    async def lose_the_leader() -> None:
        front.agreement.elect(None)
        raise UnknownOutcome("lost")

    front.others["two"] = Memory(Scripted(leader, lose_the_leader))

    with pytest.raises(UnknownOutcome) as caught:
        await front.create()

    assert caught.value.message == OUTCOME_UNKNOWN


async def test_an_own_write_that_does_not_end_has_an_unknown_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "DEADLINE_SECONDS", 0.05)
    front = a_front(leader="one")

    class Stuck:
        async def propose(self, data: bytes) -> object:
            return await asyncio.Event().wait()

    front.own.store.attach(Stuck())

    with pytest.raises(UnknownOutcome):
        await front.create()


async def test_a_write_that_is_done_is_answered_even_where_it_is_not_visible_yet() -> None:
    front = a_front()
    a_leader(front)

    async def never(index: int) -> None:
        await asyncio.Event().wait()

    front.agreement.wait_applied = never  # type: ignore[method-assign]

    assert (await front.create()).service_id


# ---- over gRPC


async def test_a_leader_that_dies_during_the_call_is_replaced_and_the_write_done_once() -> None:
    front = a_front()
    successor = a_leader(front, "three")
    dying = make_desk(agreement=FakeAgreement("two", MEMBERS))
    is_asked = asyncio.Event()

    async def be_asked_and_hang() -> None:
        is_asked.set()
        await asyncio.Event().wait()

    script = Scripted(dying, be_asked_and_hang)
    async with serving(script) as two, serving(successor.control) as three:
        async with grpc.aio.insecure_channel(two) as to_two, grpc.aio.insecure_channel(three) as to_three:
            front.others["two"] = control_pb2_grpc.ControlStub(to_two)
            front.others["three"] = control_pb2_grpc.ControlStub(to_three)
            writing = asyncio.create_task(front.create(operation_id="once"))
            await is_asked.wait()

            await serving.stop(two)
            front.agreement.elect("three")
            answer = await writing

    assert script.operations == ["once"]
    assert names(successor) == ["web"]
    assert answer.index == successor.store.applied_index


async def test_an_answer_lost_on_the_wire_does_not_make_a_second_service() -> None:
    front = a_front()
    leader = make_desk(agreement=FakeAgreement("two", MEMBERS))
    script = Scripted(leader, failing(UnknownOutcome("lost")), after=True)
    async with serving(script) as two, grpc.aio.insecure_channel(two) as channel:
        front.others["two"] = control_pb2_grpc.ControlStub(channel)

        await front.create()

    assert names(leader) == ["web"]
    assert len(script.operations) == 2


async def test_a_dead_leader_nobody_replaced_is_no_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "DEADLINE_SECONDS", 0.3)
    front = a_front()
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        front.others["two"] = control_pb2_grpc.ControlStub(channel)

        with pytest.raises(Unavailable) as caught:
            await front.create()

    assert caught.value.message == NO_LEADER


# ---- logs


async def lines(front: Front) -> list[bytes]:
    request = pb.ServiceLogsRequest(reference="web", options=BOTH)
    return [line.data async for r in front.door.service_logs(request) for line in r.lines]


async def test_the_leader_collects_logs_itself() -> None:
    assert await lines(a_front(a_service("web"), leader="one")) == [b"first", b"second"]


async def test_a_follower_passes_the_leaders_logs_on() -> None:
    front = a_front()
    leader = make_desk(a_service("web"), agreement=FakeAgreement("two", MEMBERS))
    async with serving(leader.control) as two, grpc.aio.insecure_channel(two) as channel:
        front.others["two"] = control_pb2_grpc.ControlStub(channel)

        assert await lines(front) == [b"first", b"second"]


async def test_logs_wait_for_a_leader() -> None:
    front = a_front(a_service("web"), leader=None)
    reading = asyncio.create_task(lines(front))
    await asyncio.sleep(0)

    front.agreement.elect("one")

    assert await reading == [b"first", b"second"]


async def test_logs_without_a_leader_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "DEADLINE_SECONDS", 0.05)

    with pytest.raises(Unavailable) as caught:
        await lines(a_front(leader=None))

    assert caught.value.message == NO_LEADER


async def test_logs_that_have_begun_are_not_begun_again() -> None:
    front = a_front()

    class Breaking(AbsentControl):
        async def service_logs(
            self, request: pb.ServiceLogsRequest
        ) -> AsyncGenerator[pb.ServiceLogsResponse, None]:
            yield pb.ServiceLogsResponse(lines=[pb.LogLine(data=b"first")])
            raise Unavailable("gone")

    front.others["two"] = Memory(Breaking(""))

    with pytest.raises(Unavailable, match="the manager that collected the logs was lost"):
        await lines(front)


async def test_logs_of_something_unknown_are_refused_at_once() -> None:
    with pytest.raises(NotFound, match=r"^no such task or service: web$"):
        await lines(a_front(leader="one"))
