"""This node in its swarm: the agent always, the manager while the node has that role.

Holds the node's identity, renews it, and follows what the cluster wants the node to
be. What cannot be survived (a disk that does not keep the managers' log) ends in
`failure`, and the daemon stops.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

import grpc
import structlog

from swarmlet.agent.agent import Agent
from swarmlet.agent.grpclink import GrpcLink
from swarmlet.api import pb
from swarmlet.api.addresses import split_address
from swarmlet.api.errors import NotFound, SwarmletError, Unavailable, from_code
from swarmlet.api.ids import new_id
from swarmlet.api.v1 import ca_pb2_grpc
from swarmlet.ca.credentials import channel
from swarmlet.ca.identity import Identity, new_key_and_csr
from swarmlet.ca.root import MANAGER_NAME
from swarmlet.network.embedded import EmbeddedProxy
from swarmlet.node.config import DaemonConfig
from swarmlet.node.manager import Manager
from swarmlet.node.membership import join_group, leave_group
from swarmlet.node.statedir import Membership, StateDir
from swarmlet.runtime.base import Runtime

RENEW_SECONDS = 10.0
RETRY_SECONDS = 1.0

log = structlog.get_logger(__name__)


class SwarmNode:
    """`start`, then watch `failure`, then `stop`."""

    def __init__(
        self,
        *,
        config: DaemonConfig,
        state: StateDir,
        identity: Identity,
        membership: Membership,
        runtime: Runtime,
        is_first: bool = False,
        now: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        self._config = config
        self._state = state
        self.identity = identity
        self.membership = membership
        self._is_first = is_first
        self._now = now
        self._rng = rng
        self.manager: Manager | None = None
        self.error = ""
        """Why this node cannot take part any more, for the user; empty while it can."""
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._role_wanted = asyncio.Event()
        self._wanted_role = identity.role
        self._tasks: set[asyncio.Task[None]] = set()
        host, _ = split_address(membership.advertise_addr)
        listen_host, _ = split_address(config.listen_addr)
        self._proxy = EmbeddedProxy(listen_address=listen_host, node_address=host)
        link = GrpcLink(
            membership.managers,
            channel=self._any_manager,
            on_managers=self._managers_changed,
            rng=rng,
        )
        self._runtime = runtime
        self._agent = Agent(
            node_id=identity.node_id,
            runtime=runtime,
            state_dir=state.worker,
            link=link,
            network=self._proxy,
            address=host,
            boot_id=new_id(rng),
            on_session=self._session_changed,
            now=now,
            rng=rng,
        )

    # ---- life

    async def start(self) -> None:
        """Raises what keeps the manager from starting; the agent starts whatever managers do."""
        if self.identity.role == pb.NODE_ROLE_MANAGER:
            await self._start_manager()
        self._spawn(self._run_agent(), "agent")
        self._spawn(self._follow_role(), "role")
        self._spawn(self._keep_certificate(), "certificate")

    async def stop(self) -> None:
        """Tasks of the swarm go on running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._agent.stop()
        await self._proxy.close()
        if self.manager is not None:
            await self.manager.stop()
        await self._runtime.close()

    async def _run_agent(self) -> None:
        try:
            await self._agent.run()
        except NotFound as error:
            # Said by the leader, from complete state: this node was removed.
            self.error = f'{error.message}; leave with "swarmlet swarm leave --force" and join again'
            log.error("this node was removed from the swarm; its tasks are stopped")
            await self._agent.remove_all_tasks()

    async def leave_group(self) -> None:
        """Gives up this manager's vote if the others can be reached; they go on without it in any case."""
        if self.manager is None or len(self.manager.raft.members) < 2:
            return
        try:
            await leave_group(self.membership.managers, self.identity.node_id, self._any_manager)
        except SwarmletError as error:
            log.warning("left without telling the other managers", error=str(error))

    async def remove_tasks(self) -> None:
        """Ends and removes every task of the swarm on this node; before leaving it."""
        await self._agent.stop()
        await self._agent.remove_all_tasks()

    def _spawn(self, work: object, name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or self.failure.done():
            return
        error = task.exception()
        if error is not None:
            self.failure.set_exception(error)

    # ---- the manager's half

    async def _start_manager(self) -> None:
        manager = Manager(
            config=self._config,
            state=self._state,
            identity=lambda: self.identity,
            advertise_addr=self.membership.advertise_addr,
            is_first=self._is_first,
            now=self._now,
            rng=self._rng,
        )
        self._is_first = False
        await manager.start()
        self.manager = manager
        self._spawn(self._run_manager(manager), "manager")
        if not manager.is_member:
            self._spawn(self._join_group(manager), "join")

    async def _run_manager(self, manager: Manager) -> None:
        await manager.run()
        log.info("this node is no longer a manager")
        self.manager = None
        await manager.stop()
        # A demoted manager keeps nothing of the cluster's secrets.
        superseded = manager.raft.core.was_superseded
        await asyncio.to_thread(self._state.forget_raft, keep_aside=superseded)
        self._wanted_role = pb.NODE_ROLE_WORKER
        self._role_wanted.set()

    async def join_as_manager(self) -> None:
        """Once more, now: raises the reason when the managers do not take this one."""
        assert self.manager is not None
        await self._try_join(self.manager)

    async def _join_group(self, manager: Manager) -> None:
        while not manager.is_member:
            try:
                await self._try_join(manager)
                return
            except SwarmletError as error:
                log.warning("not among the managers yet", error=str(error))
            await asyncio.sleep(RETRY_SECONDS)

    async def _try_join(self, manager: Manager) -> None:
        member = pb.RaftMember(node_id=self.identity.node_id, address=manager.address)
        others = [a for a in self.membership.managers if a != manager.address]
        await join_group(others, member, self._any_manager)

    # ---- who the managers are

    def _any_manager(self, address: str) -> grpc.aio.Channel:
        return channel(address, self.identity, target=MANAGER_NAME)

    def _managers_changed(self, managers: Sequence[pb.ManagerAddress]) -> None:
        addresses = tuple(m.address for m in managers)
        if addresses == tuple(self.membership.managers):
            return
        self.membership = replace(self.membership, managers=addresses)
        self._spawn(asyncio.to_thread(self._state.save_membership, self.membership), "save-membership")

    def _session_changed(self, info: pb.SessionInfo) -> None:
        """What the leader says of this node, at the start of a session and when it changes."""
        self._wanted_role = info.node.spec.role
        if self._wanted_role != self.identity.role:
            self._role_wanted.set()

    # ---- role and certificate

    async def _follow_role(self) -> None:
        while True:
            await self._role_wanted.wait()
            self._role_wanted.clear()
            wanted = self._wanted_role
            if wanted == self.identity.role or (wanted == pb.NODE_ROLE_WORKER and self.manager is not None):
                # A manager lets go of its role only once the group has let go of it.
                continue
            try:
                await self._renew()
                if self.identity.role == pb.NODE_ROLE_MANAGER and self.manager is None:
                    await self._start_manager()
            except SwarmletError as error:
                log.warning("role not changed yet", wanted=pb.NodeRole.Name(wanted), error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                self._role_wanted.set()

    async def _keep_certificate(self) -> None:
        while True:
            due = self.identity.renew_at(self._rng)
            await asyncio.sleep(max(0.0, (due - self._now()).total_seconds()))
            try:
                await self._renew()
            except SwarmletError as error:
                log.warning(
                    "certificate not renewed", error=str(error), not_after=str(self.identity.not_after)
                )
                await asyncio.sleep(RENEW_SECONDS)

    async def _renew(self) -> None:
        key, csr = await asyncio.to_thread(new_key_and_csr)
        response = await self._ask_for_certificate(csr)
        identity = Identity.from_pem(
            certificate_pem=response.certificate_pem, key_pem=key, root_pem=self.identity.root_pem
        )
        await asyncio.to_thread(identity.save, self._state.certificates)
        self.identity = identity
        log.info(
            "certificate renewed", role=pb.NodeRole.Name(identity.role), not_after=str(identity.not_after)
        )

    async def _ask_for_certificate(self, csr: bytes) -> pb.RenewCertificateResponse:
        failure: SwarmletError = Unavailable("no manager is known")
        for address in self.membership.managers:
            try:
                async with self._any_manager(address) as connection:
                    stub = ca_pb2_grpc.CertificatesStub(connection)
                    request = pb.RenewCertificateRequest(csr_pem=csr)
                    return await stub.Renew(request, timeout=RENEW_SECONDS)
            except grpc.aio.AioRpcError as error:
                failure = from_code(error.code(), error.details() or "")
        raise failure
