"""The manager's half of a daemon: raft, store, the services on the mutual-TLS port, the leader's loops.

Made when the node is a manager, stopped when it no longer is. Everything in here
runs on every manager except what `_lead` starts, which runs on the leader only.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import grpc
import structlog

from swarmlet.api import pb
from swarmlet.api.addresses import join_address, split_address
from swarmlet.api.errors import FailedPrecondition, NotLeader, SwarmletError, Unavailable, from_code
from swarmlet.api.v1 import ca_pb2_grpc, control_pb2_grpc, dispatcher_pb2_grpc, raft_pb2_grpc
from swarmlet.ca.authorize import RoleInterceptor, peer_of
from swarmlet.ca.bootstrap import BootstrapServer
from swarmlet.ca.credentials import SERVER_OPTIONS, channel, server_credentials
from swarmlet.ca.identity import Identity
from swarmlet.control.certificates import CertificateAuthority
from swarmlet.control.control import Control
from swarmlet.control.forward import ForwardingControl
from swarmlet.control.grpc import ControlServicer
from swarmlet.manager.controllers import all_controllers
from swarmlet.manager.dispatcher.dispatcher import Dispatcher
from swarmlet.manager.dispatcher.grpc import DispatcherService
from swarmlet.manager.logbroker import LogBroker
from swarmlet.manager.reconcile import ReconcileLoop
from swarmlet.node.config import DaemonConfig
from swarmlet.node.managers import ManagerKeeper
from swarmlet.node.membership import MembershipServicer, abort
from swarmlet.node.statedir import StateDir
from swarmlet.raft.node import RaftFiles, RaftNode, bootstrap
from swarmlet.raft.transport import GrpcTransport, RaftServicer
from swarmlet.store.store import Store

FORWARD_SECONDS = 10.0
LEAD_AGAIN_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Manager:
    """One manager. `start`, then `run` until it ends, then `stop`."""

    def __init__(
        self,
        *,
        config: DaemonConfig,
        state: StateDir,
        identity: Callable[[], Identity],
        advertise_addr: str,
        is_first: bool = False,
        now: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        """`is_first`: of a new swarm, which begins with this manager.

        Raises JournalCorrupt, SnapshotCorrupt or OSError for a state that cannot be used.
        """
        self._config = config
        self._identity = identity
        self._rng = rng
        node_id = identity().node_id
        self.address = advertise_addr
        self.store = Store(now=now, rng=rng)
        self._files = RaftFiles(state.raft)
        if is_first:
            bootstrap(self._files, pb.RaftMember(node_id=node_id, address=advertise_addr))
        self._transport = GrpcTransport(self._peer_channel, rng=rng)
        self.raft = RaftNode(
            node_id=node_id,
            files=self._files,
            machine=self.store,
            transport=self._transport,
            settings=config.raft,
            rng=rng,
        )
        self._transport.attach(self.raft)
        self.store.attach(self.raft)
        self._dispatcher = Dispatcher(
            self.store, now=now, rng=rng, managers=self.manager_addresses, barrier=self.raft.barrier
        )
        self._broker = LogBroker(self.store, self._dispatcher, rng=rng)
        self._control = Control(self.store, now=now, rng=rng, agreement=self.raft, log_source=self._broker)
        self._to_leader: tuple[tuple[str, str, Identity], grpc.aio.Channel] | None = None
        self.control = ForwardingControl(
            self._control, agreement=self.raft, connect=self._leader_control, rng=rng
        )
        self._certificates = CertificateAuthority(
            self.store, now=now, agreement=self.raft, managers=self.manager_addresses
        )
        self._now = now
        self._keeper = ManagerKeeper(self.store, self.raft)
        self._server: grpc.aio.Server | None = None
        self._bootstrap_server: BootstrapServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: list[asyncio.Future[None]] = []

    # ---- life

    @property
    def is_member(self) -> bool:
        return self.raft.core.members.get(self.raft.node_id) == self.address

    async def start(self) -> None:
        """Opens the ports and begins to take part. Raises FailedPrecondition when a port is taken."""
        await self._open_ports()
        self._tasks = [
            asyncio.create_task(self.raft.run(), name="raft"),
            asyncio.create_task(self._follow_leadership(), name="leadership"),
        ]

    async def run(self) -> None:
        """Returns when the group has voted this manager out; raises what stopped it otherwise."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task

    async def stop(self) -> None:
        for task in reversed(self._tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._bootstrap_server is not None:
            await self._bootstrap_server.stop()
        if self._server is not None:
            await self._server.stop(grace=0.2)
        await self._transport.close()
        if self._to_leader is not None:
            await self._to_leader[1].close(None)
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def wait_until_leading(self, seconds: float) -> None:
        """Returns once this manager leads. Raises Unavailable after `seconds`."""
        seen = 0
        try:
            async with asyncio.timeout(seconds):
                while not self.raft.is_leader:
                    seen = await self.raft.leadership(seen)
        except TimeoutError:
            raise Unavailable("this manager could not take the lead of its swarm") from None

    # ---- ports

    async def _open_ports(self) -> None:
        host, port = split_address(self._config.listen_addr)
        identity = self._identity()
        interceptor = RoleInterceptor(cluster_id=identity.cluster_id, is_removed=self._is_removed)
        server = grpc.aio.server(interceptors=[interceptor], options=list(SERVER_OPTIONS))
        raft_pb2_grpc.add_RaftServicer_to_server(
            RaftServicer(self.raft, lambda context: peer_of(context).node_id), server
        )
        raft_pb2_grpc.add_RaftMembershipServicer_to_server(MembershipServicer(self.raft), server)
        dispatcher_pb2_grpc.add_DispatcherServicer_to_server(
            DispatcherService(self._dispatcher, self._broker, leader_address=self._leader_address), server
        )
        control_pb2_grpc.add_ControlServicer_to_server(ControlServicer(lambda _: self._control), server)
        ca_pb2_grpc.add_CertificatesServicer_to_server(_CertificatesServicer(self._certificates), server)
        try:
            server.add_secure_port(join_address(host, port), server_credentials(self._identity))
            await server.start()
        except RuntimeError as error:
            raise FailedPrecondition(
                f"cannot listen on {join_address(host, port)}: {error}; choose another with --listen-addr"
            ) from error
        self._server = server
        self._bootstrap_server = BootstrapServer(self._identity, self.issue)
        try:
            await self._bootstrap_server.start(host, port + 1)
        except OSError as error:
            await server.stop(grace=0)
            raise FailedPrecondition(
                f"cannot listen on {join_address(host, port + 1)}, where joining nodes call: {error.strerror}"
            ) from error

    def _is_removed(self, node_id: str) -> bool:
        # A manager that is still catching up does not know the nodes yet.
        return self.store.view.cluster() is not None and self.store.view.nodes.get(node_id) is None

    def _peer_channel(self, node_id: str, address: str) -> grpc.aio.Channel:
        return channel(address, self._identity(), target=node_id)

    # ---- who is who

    def manager_addresses(self) -> Sequence[pb.ManagerAddress]:
        return [pb.ManagerAddress(node_id=m.node_id, address=m.address) for m in self.raft.members]

    def _leader_address(self) -> str:
        leader = self.raft.leader
        return leader.address if leader is not None and leader.node_id != self.raft.node_id else ""

    def _leader_channel(self, leader: pb.RaftMember) -> grpc.aio.Channel:
        """One channel, made again for another leader and after a renewal of the certificate."""
        wanted = (leader.node_id, leader.address, self._identity())
        if self._to_leader is None or self._to_leader[0] != wanted:
            if self._to_leader is not None:
                # Calls under way may end by themselves.
                self._closing.append(asyncio.ensure_future(self._to_leader[1].close(FORWARD_SECONDS)))
            self._to_leader = (wanted, self._peer_channel(leader.node_id, leader.address))
        return self._to_leader[1]

    def _leader_control(self, leader: pb.RaftMember) -> control_pb2_grpc.ControlAsyncStub:
        return control_pb2_grpc.ControlStub(self._leader_channel(leader))

    async def issue(self, request: pb.IssueCertificateRequest, peer_ip: str) -> pb.IssueCertificateResponse:
        """Gives a joiner its certificate, here or, when another manager leads, there."""
        seen = 0
        try:
            async with asyncio.timeout(FORWARD_SECONDS):
                while True:
                    try:
                        return await self._certificates.issue(request, peer_ip)
                    except NotLeader:
                        leader = self.raft.leader
                    if leader is not None and leader.node_id != self.raft.node_id:
                        if not request.advertise_address:
                            request.advertise_address = peer_ip
                        return await self._issue_at(leader, request)
                    seen = await self.raft.leadership(seen)
        except TimeoutError:
            raise Unavailable("the swarm does not have a leader at the moment; try again") from None

    async def _issue_at(
        self, leader: pb.RaftMember, request: pb.IssueCertificateRequest
    ) -> pb.IssueCertificateResponse:
        stub = ca_pb2_grpc.CertificatesStub(self._leader_channel(leader))
        try:
            return await stub.Issue(request, timeout=FORWARD_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_code(error.code(), error.details() or "") from error

    # ---- leading

    async def _follow_leadership(self) -> None:
        seen = 0
        leading: asyncio.Task[None] | None = None
        try:
            while True:
                if self.raft.is_leader and leading is None:
                    log.info("this manager leads", term=self.raft.term)
                    leading = asyncio.create_task(self._lead(), name="leading")
                elif not self.raft.is_leader and leading is not None:
                    log.info("this manager no longer leads", term=self.raft.term)
                    leading.cancel()
                    await asyncio.gather(leading, return_exceptions=True)
                    leading = None
                seen = await self.raft.leadership(seen)
        finally:
            if leading is not None:
                leading.cancel()
                await asyncio.gather(leading, return_exceptions=True)

    async def _lead(self) -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._dispatcher.run(), name="dispatcher")
                    group.create_task(self._keeper.run(), name="managers")
                    for controller in all_controllers():
                        loop = ReconcileLoop(self.store, controller, now=self._now)
                        group.create_task(loop.run(), name=controller.name)
            except Exception:
                log.exception("a part of the leader's work failed; starting all of it again")
            await asyncio.sleep(LEAD_AGAIN_SECONDS)


class _CertificatesServicer(ca_pb2_grpc.CertificatesServicer):
    def __init__(self, authority: CertificateAuthority) -> None:
        self._authority = authority

    async def Issue(  # noqa: N802 - the service's name
        self, request: pb.IssueCertificateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.IssueCertificateResponse:
        try:
            return await self._authority.issue(request, request.advertise_address)
        except SwarmletError as error:
            await abort(context, error)
            raise

    async def Renew(  # noqa: N802 - the service's name
        self, request: pb.RenewCertificateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.RenewCertificateResponse:
        try:
            return await self._authority.renew(peer_of(context), request.csr_pem)
        except SwarmletError as error:
            await abort(context, error)
            raise
