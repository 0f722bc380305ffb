"""Control: every operation on the cluster, on the manager that does it.

Made once per manager; served to other managers as it is and to users through
`forward.ForwardingControl`. Reads answer from this manager's state, writes are refused
with NotLeader where it does not lead. No gRPC in here, so that simulations call the
same code.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from datetime import datetime

from swarmlet.api import pb
from swarmlet.api.errors import NotLeader
from swarmlet.control.clusters import Clusters
from swarmlet.control.logs import LogSource, read_logs
from swarmlet.control.nodes import Nodes
from swarmlet.control.presentation import Presenter
from swarmlet.control.services import Services
from swarmlet.control.tasks import Tasks
from swarmlet.control.watch import watch_changes
from swarmlet.control.writes import Writer
from swarmlet.raft.agreement import Agreement
from swarmlet.store.store import Store


class Control:
    """The service Control on one manager; the methods are those of the rpcs.

    `now` is UTC. `rng` makes ids and names. `token_rng` makes join tokens and is left out
    except in simulations: what can be foretold from the ids that everybody sees must
    not let anybody in. `log_source` may be set later and taken away again: the
    manager has one while it leads.
    """

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], datetime],
        rng: random.Random,
        agreement: Agreement,
        log_source: LogSource | None = None,
        token_rng: random.Random | None = None,
    ) -> None:
        self.log_source = log_source
        self._store = store
        self._agreement = agreement
        self._presenter = presenter = Presenter(agreement)
        writer = Writer(store, agreement=agreement, rng=rng)
        self._clusters = Clusters(
            store, writer=writer, presenter=presenter, token_rng=token_rng or random.SystemRandom()
        )
        self._nodes = Nodes(store, writer=writer, presenter=presenter, agreement=agreement, now=now)
        self._services = Services(store, writer=writer, presenter=presenter, now=now, rng=rng)
        self._tasks = Tasks(store, presenter=presenter, find_node=self._nodes.find)

    async def get_cluster(self, request: pb.GetClusterRequest) -> pb.GetClusterResponse:
        return await self._clusters.get(request)

    async def update_cluster(self, request: pb.UpdateClusterRequest) -> pb.UpdateClusterResponse:
        return await self._clusters.update(request)

    async def list_nodes(self, request: pb.ListNodesRequest) -> pb.ListNodesResponse:
        return await self._nodes.list_nodes(request)

    async def get_node(self, request: pb.GetNodeRequest) -> pb.GetNodeResponse:
        return await self._nodes.get(request)

    async def update_node(self, request: pb.UpdateNodeRequest) -> pb.UpdateNodeResponse:
        return await self._nodes.update(request)

    async def remove_node(self, request: pb.RemoveNodeRequest) -> pb.RemoveNodeResponse:
        return await self._nodes.remove(request)

    async def list_services(self, request: pb.ListServicesRequest) -> pb.ListServicesResponse:
        return await self._services.list_services(request)

    async def get_service(self, request: pb.GetServiceRequest) -> pb.GetServiceResponse:
        return await self._services.get(request)

    async def create_service(self, request: pb.CreateServiceRequest) -> pb.CreateServiceResponse:
        return await self._services.create(request)

    async def update_service(self, request: pb.UpdateServiceRequest) -> pb.UpdateServiceResponse:
        return await self._services.update(request)

    async def remove_service(self, request: pb.RemoveServiceRequest) -> pb.RemoveServiceResponse:
        return await self._services.remove(request)

    async def list_tasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        return await self._tasks.list_tasks(request)

    async def get_task(self, request: pb.GetTaskRequest) -> pb.GetTaskResponse:
        return await self._tasks.get(request)

    def watch(self, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        return watch_changes(self._store, self._presenter, request)

    async def read_index(self, request: pb.ReadIndexRequest) -> pb.ReadIndexResponse:
        """Raises NotLeader or Unavailable where this manager cannot be sure to lead."""
        await self._agreement.barrier()
        return pb.ReadIndexResponse(index=self._store.applied_index)

    def hostname_of(self, node_id: str) -> str:
        """The node's hostname as far as it is known here; its id otherwise."""
        node = self._store.view.nodes.get(node_id)
        return node_id if node is None else node.description.hostname or node_id

    def service_logs(self, request: pb.ServiceLogsRequest) -> AsyncGenerator[pb.ServiceLogsResponse, None]:
        """Raises NotLeader at once where there is no log source."""
        if self.log_source is None or not self._agreement.is_leader:
            leader = self._agreement.leader
            raise NotLeader(leader.address if leader is not None else "")
        return read_logs(self._store.view, self.log_source, request)
