"""A daemon in memory: Control and LocalSwarm on a unix socket, with scripted watches and failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from click.testing import CliRunner, Result

from swarmlet.api import pb
from swarmlet.api.v1.control_pb2_grpc import (
    ControlServicer,
    LocalSwarmServicer,
    add_ControlServicer_to_server,
    add_LocalSwarmServicer_to_server,
)
from swarmlet.api.wire import MAJORITY_LOST_TRAILER
from swarmlet.cli.main import cli

SERVICE_ID = "svc0000000000000000000000"
NODE_IDS = ("node1aaaaaaaaaaaaaaaaaaaa", "node2bbbbbbbbbbbbbbbbbbbb")


class FakeDaemon:
    """State that tests set up, and every request that came in."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.services: dict[str, pb.Service] = {}
        self.tasks: list[pb.Task] = []
        self.nodes: list[pb.Node] = []
        self.cluster = pb.Cluster(id="cluster")
        self.info = pb.SwarmInfoResponse(node_id=NODE_IDS[0])
        self.watch: list[pb.WatchResponse] = []
        self.watch_stays_open = True
        self.logs: list[pb.ServiceLogsResponse] = []
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        """What came along with each of the requests."""
        self.majority_is_lost = False
        """Whether failures are marked as those of a manager that cannot reach a majority."""
        self.failures: dict[str, list[tuple[grpc.StatusCode, str]]] = {}

    def asked(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]

    def fail(self, method: str, *failures: tuple[grpc.StatusCode, str]) -> None:
        """The next calls of `method` fail so, one after the other."""
        self.failures[method] = list(failures)

    def find(self, reference: str) -> pb.Service | None:
        return next((s for s in self.services.values() if reference in (s.id, s.spec.name)), None)

    def run(self, *args: str, **kwargs: Any) -> Result:
        """Runs `swarmlet` against this daemon."""
        return CliRunner().invoke(cli, ["-H", str(self.socket), *args], prog_name="swarmlet", **kwargs)


class _Servicer(ControlServicer, LocalSwarmServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    def _take(self, method: str, request: Any, context: Any) -> None:
        self._daemon.requests.append(request)
        self._daemon.metadata.append(dict(context.invocation_metadata()))
        failures = self._daemon.failures.get(method)
        if failures:
            if self._daemon.majority_is_lost:
                context.set_trailing_metadata(((MAJORITY_LOST_TRAILER, "1"),))
            context.abort(*failures.pop(0))

    def _service(self, reference: str, context: Any) -> pb.Service:
        found = self._daemon.find(reference)
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"service {reference} not found")
        assert found is not None
        return found

    def CreateService(self, request: Any, context: Any) -> Any:
        self._take("CreateService", request, context)
        self._daemon.services[SERVICE_ID] = pb.Service(
            id=SERVICE_ID, spec=request.spec, version=pb.Version(index=5)
        )
        return pb.CreateServiceResponse(service_id=SERVICE_ID, index=5)

    def GetService(self, request: Any, context: Any) -> Any:
        self._take("GetService", request, context)
        return pb.GetServiceResponse(service=self._service(request.reference, context))

    def ListServices(self, request: Any, context: Any) -> Any:
        self._take("ListServices", request, context)
        return pb.ListServicesResponse(services=self._daemon.services.values())

    def UpdateService(self, request: Any, context: Any) -> Any:
        self._take("UpdateService", request, context)
        service = self._service(request.service_id, context)
        service.spec.CopyFrom(request.spec)
        service.version.index += 1
        return pb.UpdateServiceResponse(service=service)

    def RemoveService(self, request: Any, context: Any) -> Any:
        self._take("RemoveService", request, context)
        del self._daemon.services[request.service_id]
        return pb.RemoveServiceResponse()

    def ListTasks(self, request: Any, context: Any) -> Any:
        self._take("ListTasks", request, context)
        return pb.ListTasksResponse(tasks=self._daemon.tasks)

    def GetTask(self, request: Any, context: Any) -> Any:
        self._take("GetTask", request, context)
        for task in self._daemon.tasks:
            if task.id == request.reference:
                return pb.GetTaskResponse(task=task)
        context.abort(grpc.StatusCode.NOT_FOUND, f"task {request.reference} not found")
        return None

    def ListNodes(self, request: Any, context: Any) -> Any:
        self._take("ListNodes", request, context)
        return pb.ListNodesResponse(nodes=self._daemon.nodes)

    def GetNode(self, request: Any, context: Any) -> Any:
        self._take("GetNode", request, context)
        wanted = NODE_IDS[0] if request.reference == "self" else request.reference
        for node in self._daemon.nodes:
            if wanted in (node.id, node.description.hostname):
                return pb.GetNodeResponse(node=node)
        context.abort(grpc.StatusCode.NOT_FOUND, f"node {wanted} not found")
        return None

    def UpdateNode(self, request: Any, context: Any) -> Any:
        self._take("UpdateNode", request, context)
        node = next(n for n in self._daemon.nodes if n.id == request.node_id)
        node.spec.CopyFrom(request.spec)
        return pb.UpdateNodeResponse(node=node)

    def RemoveNode(self, request: Any, context: Any) -> Any:
        self._take("RemoveNode", request, context)
        return pb.RemoveNodeResponse()

    def GetCluster(self, request: Any, context: Any) -> Any:
        self._take("GetCluster", request, context)
        return pb.GetClusterResponse(cluster=self._daemon.cluster)

    def UpdateCluster(self, request: Any, context: Any) -> Any:
        self._take("UpdateCluster", request, context)
        self._daemon.cluster.spec.CopyFrom(request.spec)
        if request.rotate_worker_token:
            self._daemon.cluster.join_tokens.worker = "SWMTKN-1-new"
        return pb.UpdateClusterResponse(cluster=self._daemon.cluster)

    def ReadIndex(self, request: Any, context: Any) -> Any:
        self._take("ReadIndex", request, context)
        return pb.ReadIndexResponse()

    def Watch(self, request: Any, context: Any) -> Iterator[pb.WatchResponse]:
        self._take("Watch", request, context)
        yield from self._daemon.watch
        if self._daemon.watch_stays_open:
            ended = threading.Event()
            context.add_callback(ended.set)
            ended.wait(timeout=30)

    def ServiceLogs(self, request: Any, context: Any) -> Iterator[pb.ServiceLogsResponse]:
        self._take("ServiceLogs", request, context)
        yield from self._daemon.logs

    def Info(self, request: Any, context: Any) -> Any:
        self._take("Info", request, context)
        return self._daemon.info

    def Init(self, request: Any, context: Any) -> Any:
        self._take("Init", request, context)
        return pb.SwarmInitResponse(
            node_id=NODE_IDS[0],
            worker_join_token="SWMTKN-1-w",
            manager_join_token="SWMTKN-1-m",
            join_address="10.0.0.1:2377",
        )

    def Join(self, request: Any, context: Any) -> Any:
        self._take("Join", request, context)
        return pb.SwarmJoinResponse(node_id=NODE_IDS[1], role=pb.NODE_ROLE_WORKER)

    def Backup(self, request: Any, context: Any) -> Iterator[pb.BackupResponse]:
        self._take("Backup", request, context)
        yield pb.BackupResponse()

    def Restore(self, request_iterator: Any, context: Any) -> Any:
        self._take("Restore", list(request_iterator), context)
        return pb.RestoreResponse()

    def Leave(self, request: Any, context: Any) -> Any:
        self._take("Leave", request, context)
        return pb.SwarmLeaveResponse()


def serve(daemon: FakeDaemon) -> grpc.Server:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer = _Servicer(daemon)
    add_ControlServicer_to_server(servicer, server)
    add_LocalSwarmServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{daemon.socket}")
    server.start()
    return server


# ---- builders


def service(name: str = "web", *, replicas: int = 3, version: int = 5, image: str = "nginx:1") -> pb.Service:
    built = pb.Service(id=SERVICE_ID, version=pb.Version(index=version), spec_version=pb.Version(index=1))
    built.spec.name = name
    built.spec.mode.replicated.replicas = replicas
    built.spec.task_template.container_spec.image = image
    return built


def task(
    slot: int,
    state: pb.TaskState.ValueType = pb.TASK_STATE_RUNNING,
    *,
    identifier: str = "",
    desired: pb.TaskState.ValueType = pb.TASK_STATE_RUNNING,
    node: str = NODE_IDS[0],
    err: str = "",
    revision: int = 1,
    image: str = "nginx:1",
    age_seconds: float = 5,
) -> pb.Task:
    built = pb.Task(
        id=(identifier or f"task{slot}x").ljust(25, "0"),
        service_id=SERVICE_ID,
        service_name="web",
        slot=slot,
        node_id=node,
        desired_state=desired,
        spec_version=pb.Version(index=revision),
    )
    built.status.state = state
    built.status.err = err
    built.spec.container_spec.image = image
    at = datetime.now(UTC) - timedelta(seconds=age_seconds)
    built.status.timestamp.FromDatetime(at)
    built.created_at.FromDatetime(at)
    return built


def node(number: int, hostname: str, *, manager: bool = True, leader: bool = False) -> pb.Node:
    built = pb.Node(id=NODE_IDS[number - 1])
    built.description.hostname = hostname
    built.description.engine.engine_version = "0.1.0"
    built.status.state = pb.NODE_STATE_READY
    if manager:
        built.spec.role = pb.NODE_ROLE_MANAGER
        built.manager_status.reachability = pb.REACHABILITY_REACHABLE
        built.manager_status.leader = leader
        built.manager_status.addr = f"10.0.0.{number}:2377"
    return built


def seen(*objects: pb.Service | pb.Task, snapshot: bool = False) -> pb.WatchResponse:
    """A watch response with the objects as they are now."""
    response = pb.WatchResponse(snapshot=snapshot)
    for item in objects:
        event = response.events.add(kind=pb.CHANGE_KIND_UPDATE)
        if isinstance(item, pb.Service):
            event.object.service.CopyFrom(item)
        else:
            event.object.task.CopyFrom(item)
    return response


def lines(*texts: str) -> str:
    return "".join(f"{text}\n" for text in texts)


def tasks_in(state: pb.TaskState.ValueType, slots: Sequence[int]) -> list[pb.Task]:
    return [task(slot, state) for slot in slots]
