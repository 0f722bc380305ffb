"""What a daemon that is not a manager answers to everything about the cluster.

The words are Docker's, with our command's name.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from swarmlet.api import pb
from swarmlet.api.errors import FailedPrecondition, SwarmletError, Unavailable

NOT_IN_SWARM = (
    'This node is not a swarm manager. Use "swarmlet swarm init" or "swarmlet swarm join" '
    "to connect this node to swarm and try again."
)
WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "
    "Please run this command on a manager node or promote the current node to a manager."
)
MANAGER_NOT_READY = (
    "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster."
)


class AbsentControl:
    """Refuses every method with one of the texts above.

    Unavailable where waiting helps, FailedPrecondition where only the user can.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def _refusal(self) -> SwarmletError:
        if self._reason == MANAGER_NOT_READY:
            return Unavailable(self._reason)
        return FailedPrecondition(self._reason)

    async def get_cluster(self, request: pb.GetClusterRequest) -> pb.GetClusterResponse:
        raise self._refusal()

    async def update_cluster(self, request: pb.UpdateClusterRequest) -> pb.UpdateClusterResponse:
        raise self._refusal()

    async def list_nodes(self, request: pb.ListNodesRequest) -> pb.ListNodesResponse:
        raise self._refusal()

    async def get_node(self, request: pb.GetNodeRequest) -> pb.GetNodeResponse:
        raise self._refusal()

    async def update_node(self, request: pb.UpdateNodeRequest) -> pb.UpdateNodeResponse:
        raise self._refusal()

    async def remove_node(self, request: pb.RemoveNodeRequest) -> pb.RemoveNodeResponse:
        raise self._refusal()

    async def list_services(self, request: pb.ListServicesRequest) -> pb.ListServicesResponse:
        raise self._refusal()

    async def get_service(self, request: pb.GetServiceRequest) -> pb.GetServiceResponse:
        raise self._refusal()

    async def create_service(self, request: pb.CreateServiceRequest) -> pb.CreateServiceResponse:
        raise self._refusal()

    async def update_service(self, request: pb.UpdateServiceRequest) -> pb.UpdateServiceResponse:
        raise self._refusal()

    async def remove_service(self, request: pb.RemoveServiceRequest) -> pb.RemoveServiceResponse:
        raise self._refusal()

    async def list_tasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        raise self._refusal()

    async def get_task(self, request: pb.GetTaskRequest) -> pb.GetTaskResponse:
        raise self._refusal()

    def watch(self, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        raise self._refusal()

    async def read_index(self, request: pb.ReadIndexRequest) -> pb.ReadIndexResponse:
        raise self._refusal()

    def service_logs(self, request: pb.ServiceLogsRequest) -> AsyncGenerator[pb.ServiceLogsResponse, None]:
        raise self._refusal()
