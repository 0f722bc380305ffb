"""Control over a real gRPC connection, and what a daemon that is no manager answers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from swarmlet.api import pb
from swarmlet.api.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotLeader,
    SwarmletError,
    Unavailable,
    UnknownOutcome,
)
from swarmlet.api.v1 import control_pb2_grpc
from swarmlet.control.absent import MANAGER_NOT_READY, NOT_IN_SWARM, WORKER, AbsentControl
from swarmlet.control.grpc import INTERNAL_ERROR, ConnectionLost, call, stream
from swarmlet.control.interface import ControlInterface
from tests.builders import a_node, a_service, a_task
from tests.unit.control.fakes import a_spec, make_desk, serving

BOTH = pb.LogOptions(stdout=True, stderr=True)


@asynccontextmanager
async def connected(control: ControlInterface) -> AsyncIterator[control_pb2_grpc.ControlStub]:
    async with serving(control) as address, grpc.aio.insecure_channel(address) as channel:
        yield control_pb2_grpc.ControlStub(channel)


class Failing(AbsentControl):
    """Raises the given exception from everything."""

    def __init__(self, error: Exception) -> None:
        super().__init__("")
        self._error = error

    def _refusal(self) -> Exception:  # type: ignore[override]
        return self._error


async def test_every_unary_method_reaches_control() -> None:
    web = a_service("web", id="w")
    desk = make_desk(web, a_task(web, id="t1"), a_node("alpha", id="n1", state=pb.NODE_STATE_DOWN))

    async with connected(desk.control) as stub:
        assert (await call(stub.ListServices, pb.ListServicesRequest())).services[0].id == "w"
        assert (await call(stub.GetService, pb.GetServiceRequest(reference="web"))).service.id == "w"
        assert (await call(stub.ListTasks, pb.ListTasksRequest())).tasks[0].id == "t1"
        assert (await call(stub.GetTask, pb.GetTaskRequest(reference="t1"))).task.id == "t1"
        assert (await call(stub.ListNodes, pb.ListNodesRequest())).nodes[0].id == "n1"
        node = (await call(stub.GetNode, pb.GetNodeRequest(reference="alpha"))).node
        request = pb.UpdateNodeRequest(node_id="n1", version=node.version.index, spec=node.spec)
        assert (await call(stub.UpdateNode, request)).node.id == "n1"
        await call(stub.RemoveNode, pb.RemoveNodeRequest(node_id="n1"))
        api = await call(stub.CreateService, pb.CreateServiceRequest(spec=a_spec("api")))
        got = (await call(stub.GetService, pb.GetServiceRequest(reference=api.service_id))).service
        update = pb.UpdateServiceRequest(service_id="api", version=got.version.index, spec=got.spec)
        assert (await call(stub.UpdateService, update)).service.id == api.service_id
        await call(stub.RemoveService, pb.RemoveServiceRequest(service_id="api"))
        with pytest.raises(Unavailable):
            await call(stub.GetCluster, pb.GetClusterRequest())
        with pytest.raises(InvalidArgument):
            await call(stub.UpdateCluster, pb.UpdateClusterRequest(spec=pb.ClusterSpec(name="x")))

    assert [s.spec.name for s in desk.store.view.services] == ["web"]


async def test_streams_reach_control() -> None:
    desk = make_desk(a_service("web", id="w"))
    request = pb.ServiceLogsRequest(reference="web", options=BOTH)

    async with connected(desk.control) as stub:
        async with aclosing(stream(stub.Watch, pb.WatchRequest())) as responses:
            first = await anext(responses)
        logs = [r async for r in stream(stub.ServiceLogs, request)]

    assert first.snapshot
    assert [line.data for r in logs for line in r.lines] == [b"first", b"second"]


class Endless(AbsentControl):
    """A watch that notices when it is left."""

    def __init__(self) -> None:
        super().__init__("")
        self.left = asyncio.Event()

    async def watch(self, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        try:
            yield pb.WatchResponse(snapshot=True)
            await asyncio.Event().wait()
        finally:
            self.left.set()


async def test_a_stream_ends_at_the_server_when_its_reader_leaves() -> None:
    control = Endless()

    async with connected(control) as stub:
        async with aclosing(stream(stub.Watch, pb.WatchRequest())) as responses:
            await anext(responses)
        async with asyncio.timeout(10):
            await control.left.wait()


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("bad"),
        NotFound("none"),
        AlreadyExists("taken"),
        Conflict("update out of sequence"),
        FailedPrecondition("not now"),
        Unavailable("later"),
        UnknownOutcome("perhaps"),
    ],
)
async def test_an_error_arrives_as_it_was_raised(error: SwarmletError) -> None:
    async with connected(Failing(error)) as stub:
        with pytest.raises(type(error)) as unary:
            await call(stub.GetCluster, pb.GetClusterRequest())
        with pytest.raises(type(error)) as streaming:
            await anext(stream(stub.Watch, pb.WatchRequest()))

    assert unary.value.message == streaming.value.message == error.message
    assert not isinstance(unary.value, ConnectionLost)


@pytest.mark.parametrize("address", ["two:2377", ""])
async def test_a_follower_says_who_leads(address: str) -> None:
    async with connected(Failing(NotLeader(address))) as stub:
        with pytest.raises(NotLeader) as caught:
            await call(stub.GetCluster, pb.GetClusterRequest())

    assert caught.value.leader_address == address


async def test_a_defect_is_logged_and_not_shown() -> None:
    with capture_logs() as logs:
        async with connected(Failing(RuntimeError("secret detail"))) as stub:
            with pytest.raises(SwarmletError) as caught:
                await call(stub.GetCluster, pb.GetClusterRequest())

    assert caught.value.message == INTERNAL_ERROR
    assert [entry["event"] for entry in logs] == ["a control call failed"]
    assert "secret detail" in str(logs[0]["exc_info"])


async def test_nobody_listening_is_unavailable_and_certainly_not_done() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(Unavailable) as caught:
            await call(control_pb2_grpc.ControlStub(channel).GetCluster, pb.GetClusterRequest())

    assert not isinstance(caught.value, ConnectionLost)


class Hanging(AbsentControl):
    """Begins a call and never answers."""

    def __init__(self) -> None:
        super().__init__("")
        self.begun = asyncio.Event()

    async def get_cluster(self, request: pb.GetClusterRequest) -> pb.GetClusterResponse:
        self.begun.set()
        await asyncio.Event().wait()
        raise AssertionError("waited for ever, and no longer")


async def test_a_connection_that_breaks_during_a_call_leaves_it_open_whether_it_was_done() -> None:
    control = Hanging()

    async with serving(control) as address, grpc.aio.insecure_channel(address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        asked = asyncio.create_task(call(stub.GetCluster, pb.GetClusterRequest()))
        await control.begun.wait()
        await serving.stop(address)
        with pytest.raises(ConnectionLost):
            await asked


async def test_no_answer_in_time_is_an_unknown_outcome() -> None:
    async with connected(Hanging()) as stub:
        with pytest.raises(UnknownOutcome):
            await call(stub.GetCluster, pb.GetClusterRequest(), timeout=0.05)


@pytest.mark.parametrize(
    ("reason", "error", "words"),
    [
        # Only where waiting helps may a client try again.
        (NOT_IN_SWARM, FailedPrecondition, 'Use "swarmlet swarm init" or "swarmlet swarm join" to connect'),
        (WORKER, FailedPrecondition, "Worker nodes can't be used to view or modify cluster state. Please"),
        (MANAGER_NOT_READY, Unavailable, "Manager is being prepared or has trouble connecting to the"),
    ],
)
async def test_who_is_no_manager_says_why_to_everything(
    reason: str, error: type[SwarmletError], words: str
) -> None:
    absent = AbsentControl(reason)
    names = [n for n in vars(ControlInterface) if not n.startswith("_")]
    assert len(names) == 16

    for name in names:
        with pytest.raises(error) as caught:
            answer = getattr(absent, name)(None)
            assert inspect.isawaitable(answer)
            await answer
        assert caught.value.message.startswith(f"This node is not a swarm manager. {words}")
