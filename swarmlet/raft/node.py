"""One manager's raft on the event loop: the driver, and `Agreement` for the rest of the house.

The driver is the only user of `core`. It sleeps until something happens or the next
heartbeat or election is due, and syncs the journal once per round in a thread, so
writes that arrive together share one sync.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from swarmlet.api import pb
from swarmlet.api.errors import (
    Conflict,
    FailedPrecondition,
    NotLeader,
    SwarmletError,
    Unavailable,
    UnknownOutcome,
)
from swarmlet.raft.agreement import StateMachine
from swarmlet.raft.core import Core
from swarmlet.raft.engine import DATA, LEADER, MEMBERSHIP, NOOP, Outcome, ProposalCallback, RaftSettings
from swarmlet.raft.journal import Journal
from swarmlet.raft.snapshot import Snapshot, SnapshotCorrupt, SnapshotFile, decode

PROPOSALS_MAX = 10_000
PROPOSE_SECONDS_MAX = 10.0
CATCH_UP_SECONDS_MAX = 60.0
JOIN_POLL_SECONDS = 0.05

R = TypeVar("R")

log = structlog.get_logger(__name__)


class PeerTransport(Protocol):
    """Carries messages between managers: in order, without duplicates, nothing across a reconnect."""

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """Node ids and addresses to keep connections to; calls PeerEvents as they come and go."""

    def send(self, peer: str, message: pb.RaftMessage) -> None:
        """Queues a message; it is lost, with everything behind it, when the connection breaks."""


class PeerEvents(Protocol):
    def on_message(self, peer: str, message: pb.RaftMessage) -> None: ...
    def on_connected(self, peer: str) -> None: ...
    def on_disconnected(self, peer: str) -> None: ...


class RaftStopped(SwarmletError):
    """This manager no longer takes part: its disk failed or its state cannot be trusted."""


class RaftFiles:
    """Journal and snapshot of one manager in a directory. Blocking."""

    def __init__(self, directory: Path) -> None:
        """Raises JournalCorrupt, SnapshotCorrupt or OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.snapshot_file = SnapshotFile(directory / "snapshot")
        self.snapshot = self.snapshot_file.load()
        self.journal = Journal(directory / "journal")

    @property
    def is_empty(self) -> bool:
        return self.snapshot is None and len(self.journal) == 0


def bootstrap(files: RaftFiles, member: pb.RaftMember) -> None:
    """Makes the first manager of a new cluster: a log that says that it is the only member."""
    change = pb.MembershipChange(action=pb.MembershipChange.ADD, member=member)
    files.journal.add(NOOP, 1, 0)
    files.journal.add(MEMBERSHIP + change.SerializeToString(), 2, 1)
    files.journal.setCurrentTerm(1, None)
    files.journal.setRaftCommitIndex(2)
    files.journal.sync()


class RaftNode:
    """Implements `agreement.Agreement`."""

    def __init__(
        self,
        *,
        node_id: str,
        files: RaftFiles,
        machine: StateMachine,
        transport: PeerTransport,
        settings: RaftSettings,
        rng: random.Random,
        in_thread: Callable[[Callable[[], object]], Awaitable[object]] | None = None,
    ) -> None:
        """`in_thread` runs blocking calls off the loop; a simulation gives its own."""
        self._files = files
        self._machine = machine
        self._transport = transport
        self._executor: ThreadPoolExecutor | None = None
        if in_thread is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raft")
            in_thread = self._run_in_executor
        self._in_thread = in_thread
        self._inbox: deque[Callable[[], None]] = deque()
        self._held: list[tuple[str, pb.RaftMessage]] = []
        self._held_peers: set[str] = set()
        self._proposals: deque[tuple[bytes, ProposalCallback]] = deque()
        self._wake = asyncio.Event()
        self._snapshot_task: asyncio.Task[None] | None = None
        self._changes = 0
        self._last_leadership: object = None
        self._change_waiters: list[asyncio.Future[None]] = []
        self._applied_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._reads: list[tuple[int, int, asyncio.Future[None]]] = []
        self._failure: BaseException | None = None
        self._membership_lock = asyncio.Lock()
        if files.snapshot is not None:
            machine.restore(files.snapshot.last_index, files.snapshot.state)
        self.core = Core(
            node_id=node_id,
            journal=files.journal,
            snapshot=files.snapshot,
            machine=machine,
            settings=settings,
            rng=rng,
            send=self._queue_message,
            read_snapshot=files.snapshot_file.read,
        )
        self._settings = settings
        self._peers: Mapping[str, str] = {}

    async def _run_in_executor(self, call: Callable[[], object]) -> object:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    # ---- Agreement

    @property
    def node_id(self) -> str:
        return self.core.node_id

    @property
    def is_leader(self) -> bool:
        return self.core.leads and self._failure is None

    @property
    def term(self) -> int:
        return self.core.term

    @property
    def leader(self) -> pb.RaftMember | None:
        leader_id = self.core.leader_id
        if leader_id is None:
            return None
        return pb.RaftMember(node_id=leader_id, address=self.core.members.get(leader_id, ""))

    @property
    def members(self) -> Sequence[pb.RaftMember]:
        return [pb.RaftMember(node_id=k, address=v) for k, v in self.core.members.items()]

    @property
    def was_removed(self) -> bool:
        """Whether the group has voted this manager out."""
        return self.core.was_removed

    def reachable(self) -> frozenset[str]:
        return self.core.answering() if self.core.state == LEADER else frozenset()

    async def propose(self, data: bytes) -> object:
        return await self._propose(DATA + data)

    async def barrier(self) -> None:
        if not self.is_leader:
            raise self._not_leader()
        round_, index = self.core.begin_read()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reads.append((round_, index, done))
        self._wake.set()
        try:
            async with asyncio.timeout(self._settings.election_seconds_max):
                await done
        except TimeoutError:
            raise Unavailable("a majority of the managers does not answer") from None

    async def leadership(self, seen: int) -> int:
        while self._changes <= seen:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._change_waiters.append(waiter)
            await waiter
        return self._changes

    async def wait_applied(self, index: int) -> None:
        if self.core.applied_index >= index:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._applied_waiters.append((index, waiter))
        await waiter

    # ---- membership

    async def add_member(self, member: pb.RaftMember) -> None:
        """Brings a manager up to date, then lets it vote. Leader only; repeating it is safe.

        Changes of several managers wait for each other. Raises NotLeader, or Unavailable
        when the manager could not be reached or did not catch up.
        """
        if not self.is_leader:
            raise self._not_leader()
        if self.core.members.get(member.node_id) == member.address:
            return
        try:
            async with asyncio.timeout(CATCH_UP_SECONDS_MAX):
                self._on_core(lambda: self.core.add_learner(member))
                while not self.core.learner_is_current(member.node_id):
                    if not self.is_leader:
                        raise self._not_leader()
                    await asyncio.sleep(JOIN_POLL_SECONDS)
        except TimeoutError:
            raise Unavailable(
                f"the new manager at {member.address} could not be brought up to date: "
                "is that address reachable from this manager?"
            ) from None
        finally:
            if member.node_id not in self.core.members and not self.core.learner_is_current(member.node_id):
                self._on_core(lambda: self.core.drop_learner(member.node_id))
        await self._change_membership(pb.MembershipChange.ADD, member)

    async def remove_member(self, node_id: str) -> None:
        """Takes a manager's vote away. Leader only. Raises FailedPrecondition for the leader itself."""
        if not self.is_leader:
            raise self._not_leader()
        if node_id == self.node_id:
            raise FailedPrecondition("the leader cannot remove itself: transfer the leadership first")
        if node_id not in self.core.members:
            return
        await self._change_membership(pb.MembershipChange.REMOVE, pb.RaftMember(node_id=node_id))

    async def _change_membership(
        self, action: pb.MembershipChange.Action.ValueType, member: pb.RaftMember
    ) -> None:
        command = MEMBERSHIP + pb.MembershipChange(action=action, member=member).SerializeToString()
        async with self._membership_lock:
            while True:
                try:
                    await self._propose(command)
                    return
                except Conflict:
                    # One that a former leader began is not decided yet.
                    await asyncio.sleep(JOIN_POLL_SECONDS)

    async def transfer_leadership(self, target: str) -> bool:
        """Asks `target` to lead; False when it is not up to date."""
        return self.core.transfer_leadership(target)

    # ---- PeerEvents

    def on_message(self, peer: str, message: pb.RaftMessage) -> None:
        self._on_core(lambda: self.core.receive(peer, message))

    def on_connected(self, peer: str) -> None:
        self._on_core(lambda: self.core.peer_connected(peer))

    def on_disconnected(self, peer: str) -> None:
        self._on_core(lambda: self.core.peer_disconnected(peer))

    # ---- the driver

    async def run(self) -> None:
        """Takes part until cancelled. Raises RaftStopped when this manager must not go on."""
        self._update_peers()
        try:
            while True:
                await self._wait_for_work()
                await self._round()
                if self.core.was_removed:
                    return
        except (OSError, SnapshotCorrupt, ValueError, RuntimeError) as error:
            self._failure = error
            raise RaftStopped(f"raft stopped: {error}") from error
        finally:
            await self._shut_down()

    async def _wait_for_work(self) -> None:
        if not (self._wake.is_set() or self.core.has_backlog):
            seconds = self.core.deadline() - self.core._now()
            try:
                async with asyncio.timeout(None if seconds == float("inf") else max(0.0, seconds)):
                    await self._wake.wait()
            except TimeoutError:
                pass
        else:
            await asyncio.sleep(0)
        self._wake.clear()

    async def _round(self) -> None:
        inbox, self._inbox = self._inbox, deque()
        for event in inbox:
            event()
        self.core.take_proposals(self._proposals)
        self._files.journal.onOneSecondTimer()
        self.core.replicate()
        if self.core.pending_install is not None:
            await self._install(*self.core.pending_install)
        if self._files.journal.dirty:
            await self._in_thread(self._files.journal.sync)
        self._release_messages()
        self.core.advance()
        self._release_messages_if_synced()
        self._finish_reads()
        self._announce()
        if self._snapshot_task is None and self.core.snapshot_is_due():
            self._snapshot_task = asyncio.create_task(self._take_snapshot())

    def _on_core(self, event: Callable[[], None]) -> None:
        self._inbox.append(event)
        self._wake.set()

    def _queue_message(self, peer: str, message: pb.RaftMessage, after_sync: bool) -> None:
        if after_sync or peer in self._held_peers:
            self._held.append((peer, message))
            self._held_peers.add(peer)
        else:
            self._transport.send(peer, message)

    def _release_messages(self) -> None:
        held, self._held = self._held, []
        self._held_peers.clear()
        for peer, message in held:
            self._transport.send(peer, message)

    def _release_messages_if_synced(self) -> None:
        if self._held and not self._files.journal.dirty:
            self._release_messages()
        elif self._held:
            self._wake.set()

    async def _install(self, sender: str, data: bytes) -> None:
        self.core.pending_install = None

        def verify_and_keep() -> Snapshot:
            snapshot = decode(data, f"the snapshot from manager {sender}")
            self._files.snapshot_file.write(data)
            return snapshot

        try:
            snapshot = await self._in_thread(verify_and_keep)
        except SnapshotCorrupt as error:
            log.error("snapshot refused", sender=sender, error=str(error))
            return
        assert isinstance(snapshot, Snapshot)
        if self._snapshot_task is not None:
            self._snapshot_task.cancel()
            await asyncio.gather(self._snapshot_task, return_exceptions=True)
            self._snapshot_task = None
        self.core.install(sender, snapshot)

    async def _take_snapshot(self) -> None:
        header, encode = self.core.begin_snapshot()

        def write() -> None:
            members = list(header.members)
            snapshot = Snapshot(header.last_index, header.last_term, members, encode())
            self._files.snapshot_file.write(snapshot.encode())

        try:
            await asyncio.to_thread(write)
        except OSError as error:
            log.error("snapshot not written", error=str(error))
        else:
            self._on_core(lambda: self.core.finish_snapshot(header.last_index))
        self._snapshot_task = None

    # ---- telling others

    def _announce(self) -> None:
        self._update_peers()
        applied = self.core.applied_index
        if self._applied_waiters:
            for index, waiter in self._applied_waiters:
                if index <= applied and not waiter.done():
                    waiter.set_result(None)
            self._applied_waiters = [w for w in self._applied_waiters if not w[1].done()]
        leadership = (self.is_leader, self.core.leader_id, self.core.term)
        if leadership != self._last_leadership:
            self._last_leadership = leadership
            self._changes += 1
            waiters, self._change_waiters = self._change_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _update_peers(self) -> None:
        peers = dict(self.core.peers)
        if peers != self._peers:
            self._peers = peers
            self._transport.set_peers(peers)

    def _finish_reads(self) -> None:
        if not self._reads:
            return
        confirmed = self.core.confirmed_round() if self.core.state == LEADER else 0
        waiting = []
        for round_, index, done in self._reads:
            if done.done():
                continue
            if self.core.state != LEADER:
                done.set_exception(self._not_leader())
            elif round_ <= confirmed and index <= self.core.applied_index:
                done.set_result(None)
            else:
                waiting.append((round_, index, done))
        self._reads = waiting

    async def _propose(self, command: bytes) -> object:
        if self._failure is not None:
            raise Unavailable(str(self._failure))
        if not self.is_leader:
            raise self._not_leader()
        if len(self._proposals) >= PROPOSALS_MAX:
            raise Unavailable("too many writes are waiting for the managers")
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def finish(result: object, outcome: Outcome | None) -> None:
            if done.done():
                return
            if outcome is None:
                done.set_result(result)
            else:
                done.set_exception(self._error_of(outcome))

        self._proposals.append((command, finish))
        self._wake.set()
        try:
            async with asyncio.timeout(PROPOSE_SECONDS_MAX):
                return await done
        except TimeoutError:
            raise UnknownOutcome("the managers did not confirm the write in time") from None

    def _error_of(self, outcome: Outcome) -> SwarmletError:
        if outcome is Outcome.NOT_LEADER:
            return self._not_leader()
        if outcome is Outcome.DISCARDED:
            return Unavailable("the write was discarded in a change of leader")
        if outcome is Outcome.REFUSED:
            return Conflict("another change of the managers is under way")
        return UnknownOutcome("this manager lost the leadership while the write was under way")

    def _not_leader(self) -> NotLeader:
        leader = self.leader
        is_other = leader is not None and leader.node_id != self.node_id
        return NotLeader(leader.address if leader is not None and is_other else "")

    async def _shut_down(self) -> None:
        if self._snapshot_task is not None:
            self._snapshot_task.cancel()
            await asyncio.gather(self._snapshot_task, return_exceptions=True)
        self._transport.set_peers({})
        for _, callback in self._proposals:
            callback(None, Outcome.NOT_LEADER)
        self._proposals.clear()
        self.core._answer_all_unknown()
        for _, _, read in self._reads:
            if not read.done():
                read.set_exception(Unavailable("this manager is stopping"))
        for waiter in self._change_waiters:
            waiter.cancel()
        for _, waiter in self._applied_waiters:
            waiter.cancel()
        if self._executor is not None:
            await asyncio.to_thread(self._executor.shutdown)
        self._files.journal.close()
