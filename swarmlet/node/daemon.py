"""The daemon process: the state directory, the local socket, and this node's swarm if it is in one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog

from swarmlet import __version__
from swarmlet.api import pb
from swarmlet.api.addresses import split_address
from swarmlet.api.errors import FailedPrecondition, SwarmletError, Unavailable
from swarmlet.api.ids import new_id
from swarmlet.api.v1 import control_pb2_grpc
from swarmlet.ca import bootstrap
from swarmlet.ca.credentials import SERVER_OPTIONS
from swarmlet.ca.identity import Identity, new_key_and_csr
from swarmlet.ca.root import RootCA
from swarmlet.control.absent import MANAGER_NOT_READY, NOT_IN_SWARM, WORKER, AbsentControl
from swarmlet.control.grpc import ControlServicer
from swarmlet.control.initial import write_initial_cluster
from swarmlet.control.interface import ControlInterface
from swarmlet.control.terms import Terms
from swarmlet.node.advertise import advertise_address
from swarmlet.node.backup import backup, received
from swarmlet.node.cautions import lone_manager_warnings, manager_leave_warning
from swarmlet.node.config import DaemonConfig
from swarmlet.node.disaster import found_from_backup, make_group_of_one, new_identity, restored_store
from swarmlet.node.localswarm import LocalSwarmServicer
from swarmlet.node.logs import configure_logging
from swarmlet.node.runtimes import choose_runtime
from swarmlet.node.statedir import Membership, StateDir
from swarmlet.node.swarm import SwarmNode

LEADER_SECONDS = 20.0
ALREADY_IN_SWARM = (
    'This node is already part of a swarm. Use "swarmlet swarm leave" '
    "to leave this swarm and join another one."
)

log = structlog.get_logger(__name__)


def run(config: DaemonConfig) -> int:
    """Runs until told to stop; the exit status. Errors that stop the daemon are said on stderr."""
    try:
        configure_logging(config.log_level, config.log_format)
        asyncio.run(_run(config))
    except SwarmletError as error:
        sys.stderr.write(f"swarmlet daemon: {error.message}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"swarmlet daemon: {error.strerror}: {error.filename or config.state_dir}\n")
        return 1
    return 0


async def _run(config: DaemonConfig) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    daemon = Daemon(config, rng=random.Random(os.urandom(16)))
    try:
        await daemon.start()
        await daemon.until(stopped)
    finally:
        await daemon.stop()


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Daemon:
    """One node. `start`, `until`, `stop`; in between its local socket is served."""

    def __init__(self, config: DaemonConfig, *, rng: random.Random) -> None:
        self._config = replace(config, hostname=config.hostname or socket.gethostname())
        self._rng = rng
        self._now = _utc_now
        self._state = StateDir(config.state_dir)
        self._server: grpc.aio.Server | None = None
        self._swarm: SwarmNode | None = None
        self._busy = asyncio.Lock()
        self._swarm_changed = asyncio.Event()
        self._runtime_name = ""

    # ---- life

    async def start(self) -> None:
        """Takes up the swarm this node is in, if any, and serves the local socket.

        Raises SwarmletError or OSError; the state directory is untouched by that.
        """
        membership = self._state.membership()
        identity = Identity.load(self._state.certificates)
        if membership is not None:
            if identity is None:
                raise FailedPrecondition(
                    f"{self._state.certificates} has no identity although this node is in a swarm; "
                    "restore it from a backup, or remove the state directory and join again"
                )
            await self._enter(identity, membership)
        await self._serve_socket()
        log.info("daemon ready", socket=str(self._config.socket), version=__version__)

    async def until(self, stopped: asyncio.Event) -> None:
        """Returns when told to stop; raises what made going on impossible."""
        waiting_stop = asyncio.create_task(stopped.wait())
        try:
            while not stopped.is_set():
                self._swarm_changed.clear()
                waits: set[asyncio.Future[object]] = {
                    asyncio.ensure_future(waiting_stop),
                    asyncio.ensure_future(self._swarm_changed.wait()),
                }
                if self._swarm is not None:
                    waits.add(self._swarm.failure)  # type: ignore[arg-type]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if self._swarm is not None and self._swarm.failure.done():
                    await self._swarm.failure
        finally:
            waiting_stop.cancel()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=0.2)
            self._config.socket.unlink(missing_ok=True)
        if self._swarm is not None:
            await self._swarm.stop()
        self._state.close()

    async def _serve_socket(self) -> None:
        path = self._config.socket
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_socket(path)
        server = grpc.aio.server(options=list(SERVER_OPTIONS))
        control_pb2_grpc.add_LocalSwarmServicer_to_server(LocalSwarmServicer(self), server)
        control_pb2_grpc.add_ControlServicer_to_server(ControlServicer(self.control), server)
        # The file is made by gRPC: nobody else may have it, not even for a moment.
        before = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{path}")
            await server.start()
        except RuntimeError as error:
            raise FailedPrecondition(f"cannot listen on {path}: {error}") from error
        finally:
            os.umask(before)
        self._server = server

    # ---- what the local socket offers

    def control(self, terms: Terms) -> ControlInterface:
        """The door to the cluster as this node has it now, for a caller with these terms."""
        if self._swarm is None:
            return AbsentControl(NOT_IN_SWARM)
        if self._swarm.manager is not None:
            return self._swarm.manager.control.under(terms)
        is_manager = self._swarm.identity.role == pb.NODE_ROLE_MANAGER
        return AbsentControl(MANAGER_NOT_READY if is_manager else WORKER)

    def info(self) -> pb.SwarmInfoResponse:
        response = pb.SwarmInfoResponse(version=__version__, runtime=self._runtime_name)
        swarm = self._swarm
        if swarm is None:
            busy = self._busy.locked()
            response.local_node_state = pb.LOCAL_NODE_STATE_PENDING if busy else pb.LOCAL_NODE_STATE_INACTIVE
            return response
        response.local_node_state = pb.LOCAL_NODE_STATE_ERROR if swarm.error else pb.LOCAL_NODE_STATE_ACTIVE
        response.error = swarm.error
        response.node_id = swarm.identity.node_id
        response.cluster_id = swarm.identity.cluster_id
        response.node_addr = split_address(swarm.membership.advertise_addr)[0]
        if swarm.manager is not None:
            response.control_available = True
            response.managers.extend(swarm.manager.manager_addresses())
            leader = swarm.manager.raft.leader
            response.leader_id = leader.node_id if leader is not None else ""
        else:
            response.managers.extend(pb.ManagerAddress(address=a) for a in swarm.membership.managers)
        return response

    async def init(self, request: pb.SwarmInitRequest) -> pb.SwarmInitResponse:
        """Makes a new swarm with this node as its first manager."""
        if request.force_new_cluster:
            return await self._make_alone(request.advertise_addr)
        async with self._outside_a_swarm():
            address = self._advertise(request.advertise_addr)
            root = RootCA.create(self._now())
            identity = await asyncio.to_thread(self._self_signed, root)
            membership = Membership(identity.node_id, identity.cluster_id, address, (address,))
            self._state.forget_swarm()
            swarm = await self._enter(identity, membership, is_first=True)
            try:
                response = await self._found_cluster(swarm, root, request)
            except BaseException:
                await self._abandon()
                raise
            self._keep(identity, membership)
            return response

    def _self_signed(self, root: RootCA) -> Identity:
        key, csr = new_key_and_csr()
        certificate = root.sign(
            csr,
            node_id=new_id(self._rng),
            role=pb.NODE_ROLE_MANAGER,
            cluster_id=new_id(self._rng),
            now=self._now(),
        )
        return Identity.from_pem(certificate_pem=certificate, key_pem=key, root_pem=root.certificate_pem)

    async def _found_cluster(
        self, swarm: SwarmNode, root: RootCA, request: pb.SwarmInitRequest
    ) -> pb.SwarmInitResponse:
        manager = swarm.manager
        assert manager is not None
        await manager.wait_until_leading(LEADER_SECONDS)
        cluster = await write_initial_cluster(
            manager.store,
            root_ca=root,
            cluster_id=swarm.identity.cluster_id,
            node_id=swarm.identity.node_id,
            hostname=self._config.hostname,
            address=swarm.membership.advertise_addr,
            options=request,
            rng=random.SystemRandom(),
        )
        return pb.SwarmInitResponse(
            node_id=swarm.identity.node_id,
            worker_join_token=cluster.join_tokens.worker,
            manager_join_token=cluster.join_tokens.manager,
            join_address=swarm.membership.advertise_addr,
        )

    async def join(self, request: pb.SwarmJoinRequest) -> pb.SwarmJoinResponse:
        """Joins an existing swarm in the role that the token gives."""
        async with self._outside_a_swarm():
            requested = request.advertise_addr or self._config.advertise_addr
            advertised = self._advertise(requested) if requested else self._advertise_or_empty()
            identity, response = await bootstrap.join(
                request.remote_address,
                request.token,
                availability=request.availability,
                hostname=self._config.hostname,
                advertise_address=advertised,
            )
            _, port = split_address(self._config.listen_addr)
            address = advertised or f"{response.observed_address}:{port}"
            membership = Membership(
                identity.node_id, identity.cluster_id, address, tuple(response.manager_addresses)
            )
            self._state.forget_swarm()
            swarm = await self._enter(identity, membership)
            try:
                if swarm.manager is not None:
                    await swarm.join_as_manager()
            except BaseException:
                await self._abandon()
                raise
            self._keep(identity, membership)
            return pb.SwarmJoinResponse(node_id=identity.node_id, role=identity.role)

    async def leave(self, request: pb.SwarmLeaveRequest) -> None:
        """Leaves the swarm; a manager only with force, as Docker asks for it."""
        async with self._busy:
            swarm = self._swarm
            if swarm is None:
                raise Unavailable("This node is not part of a swarm")
            if swarm.manager is not None and not request.force:
                raise FailedPrecondition(manager_leave_warning(swarm))
            await swarm.leave_group()
            await swarm.remove_tasks()
            await self._abandon()

    # ---- disasters

    async def _make_alone(self, advertise_addr: str) -> pb.SwarmInitResponse:
        """Goes on as the only manager, from this manager's own state; tasks here run on."""
        async with self._alone_at_work():
            swarm = self._swarm
            if swarm is None:
                raise FailedPrecondition(NOT_IN_SWARM)
            if swarm.manager is None:
                raise FailedPrecondition(WORKER)
            before = swarm.membership
            address = self._advertise(advertise_addr) if advertise_addr else before.advertise_addr
            warnings = lone_manager_warnings(swarm)
            # First: with the log of the old group and a new address this is a manager that moved.
            # The others' addresses would only delay this node's own way back to its leader.
            membership = replace(before, advertise_addr=address, managers=(address,))
            self._state.save_membership(membership)
            await self._pause()
            try:
                await asyncio.to_thread(
                    make_group_of_one,
                    self._state.raft,
                    node_id=before.node_id,
                    address=address,
                    hostname=self._config.hostname,
                    now=self._now(),
                    rng=random.SystemRandom(),
                )
            except BaseException:
                self._state.save_membership(before)
                await self._enter(swarm.identity, before)
                raise
            log.warning("this manager goes on alone", was_with=[*before.managers])
            alone = await self._enter(swarm.identity, membership)
            return await self._founded(alone, warnings)

    async def _founded(self, swarm: SwarmNode, warnings: Sequence[str]) -> pb.SwarmInitResponse:
        assert swarm.manager is not None
        await swarm.manager.wait_until_leading(LEADER_SECONDS)
        cluster = swarm.manager.store.view.cluster()
        assert cluster is not None
        return pb.SwarmInitResponse(
            node_id=swarm.identity.node_id,
            worker_join_token=cluster.join_tokens.worker,
            manager_join_token=cluster.join_tokens.manager,
            join_address=swarm.membership.advertise_addr,
            warnings=warnings,
        )

    async def backup(self) -> AsyncGenerator[pb.BackupResponse, None]:
        """The cluster's state; on managers only."""
        swarm = self._swarm
        if swarm is None:
            raise FailedPrecondition(NOT_IN_SWARM)
        if swarm.manager is None:
            raise FailedPrecondition(WORKER)
        messages = backup(swarm.manager, cluster_id=swarm.identity.cluster_id, now=self._now)
        async with contextlib.aclosing(messages):
            async for message in messages:
                yield message

    async def restore(self, requests: AsyncIterator[pb.RestoreRequest]) -> pb.RestoreResponse:
        """Makes a swarm with this node as its only manager from a backup."""
        async with self._outside_a_swarm():
            first, state = await received(requests)
            address = self._advertise(first.advertise_addr)
            now, rng = self._now(), random.SystemRandom()
            store = await asyncio.to_thread(restored_store, first.header, state, now=now, rng=rng)
            cluster = store.view.cluster()
            assert cluster is not None
            identity = await asyncio.to_thread(new_identity, cluster, now, rng)
            membership = Membership(identity.node_id, identity.cluster_id, address, (address,))
            self._state.forget_swarm()
            try:
                await asyncio.to_thread(
                    found_from_backup,
                    self._state.raft,
                    first.header,
                    store,
                    node_id=identity.node_id,
                    address=address,
                    hostname=self._config.hostname,
                    now=self._now,
                    rng=rng,
                )
                founded = await self._founded(await self._enter(identity, membership), ())
            except BaseException:
                await self._abandon()
                raise
            self._keep(identity, membership)
            return pb.RestoreResponse(
                node_id=founded.node_id,
                worker_join_token=founded.worker_join_token,
                manager_join_token=founded.manager_join_token,
                join_address=founded.join_address,
            )

    # ---- into a swarm and out of it

    @contextlib.asynccontextmanager
    async def _alone_at_work(self):  # type: ignore[no-untyped-def]
        if self._busy.locked():
            raise Unavailable("this node is just joining or leaving a swarm; try again when that is done")
        async with self._busy:
            yield

    @contextlib.asynccontextmanager
    async def _outside_a_swarm(self):  # type: ignore[no-untyped-def]
        async with self._alone_at_work():
            if self._swarm is not None:
                raise Unavailable(ALREADY_IN_SWARM)
            if self._state.membership() is not None:
                raise FailedPrecondition(
                    "this node is part of a swarm that it could not take up again; "
                    "its log says why; start the daemon again"
                )
            yield

    async def _enter(
        self, identity: Identity, membership: Membership, *, is_first: bool = False
    ) -> SwarmNode:
        runtime = await choose_runtime(
            self._config,
            owner=identity.node_id,
            hostname=self._config.hostname,
            directory=self._state.worker / "processes",
            now=self._now,
        )
        self._runtime_name = runtime.name
        swarm = SwarmNode(
            config=self._config,
            state=self._state,
            identity=identity,
            membership=membership,
            runtime=runtime,
            is_first=is_first,
            now=self._now,
            rng=self._rng,
        )
        try:
            await swarm.start()
        except BaseException:
            await swarm.stop()
            raise
        self._swarm = swarm
        self._swarm_changed.set()
        return swarm

    def _keep(self, identity: Identity, membership: Membership) -> None:
        """From here on a restarted daemon is in the swarm."""
        identity.save(self._state.certificates)
        self._state.save_membership(membership)

    async def _abandon(self) -> None:
        await self._pause()
        self._state.forget_swarm()

    async def _pause(self) -> None:
        """Ends this process's part in the swarm; the node's tasks and its files stay."""
        swarm, self._swarm = self._swarm, None
        self._swarm_changed.set()
        if swarm is not None:
            await swarm.stop()

    def _advertise(self, requested: str) -> str:
        return advertise_address(requested or self._config.advertise_addr, self._config.listen_addr)

    def _advertise_or_empty(self) -> str:
        """A joiner that cannot tell its address lets the manager say how it sees it."""
        try:
            return self._advertise("")
        except SwarmletError:
            return ""


def _remove_stale_socket(path: Path) -> None:
    """Makes room for the socket; raises FailedPrecondition when a daemon answers there."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise FailedPrecondition(f"cannot use the socket {path}: {error.strerror}") from error
    raise FailedPrecondition(f"another swarmlet daemon answers at {path}; choose another with --socket")
