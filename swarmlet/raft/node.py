"""One manager's raft on the event loop: the driver, and `Agreement` for the rest of the house.

The driver is the only user of `core`. It sleeps until something happens or the next
heartbeat or election is due, and syncs the journal once per round in a thread, so
writes that arrive together share one sync.
"""

from __future__ import annotations

import asyncio
import random
import threading
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
from swarmlet.raft.contact import Contact
from swarmlet.raft.core import Core
from swarmlet.raft.engine import DATA, LEADER, MEMBERSHIP, NOOP, Outcome, ProposalCallback, RaftSettings
from swarmlet.raft.files import sync_directory
from swarmlet.raft.journal import Journal
from swarmlet.raft.snapshot import Snapshot, SnapshotCorrupt, SnapshotFile, decode
from swarmlet.raft.waiters import Waiters

PROPOSALS_MAX = 10_000
PROPOSE_SECONDS_MAX = 10.0
CATCH_UP_SECONDS_MAX = 60.0
JOIN_POLL_SECONDS = 0.05
COMMIT_NOTE_SECONDS = 1.0
"""How old the commit index on disk may be; it only serves a manager that starts again."""
SNAPSHOT_RETRY_SECONDS = 10.0

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
        # Also for a rename that a killed process did not come to make durable.
        sync_directory(directory)
        sync_directory(directory.parent)
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
        self._executors: list[ThreadPoolExecutor] = []
        # Two: the journal must not wait until a large snapshot is written.
        self._in_thread = in_thread or self._new_thread("raft-journal")
        self._in_snapshot_thread = in_thread or self._new_thread("raft-snapshot")
        self._inbox: deque[Callable[[], None]] = deque()
        self._held: list[tuple[str, pb.RaftMessage]] = []
        self._held_peers: set[str] = set()
        self._proposals: deque[tuple[bytes, ProposalCallback]] = deque()
        self._wake = asyncio.Event()
        self._snapshot_task: asyncio.Task[None] | None = None
        self._snapshot_not_before = float("-inf")
        self._snapshot_lock = threading.Lock()
        self._snapshot_kept = files.snapshot.last_index if files.snapshot is not None else 0
        self._commit_note_due = float("-inf")
        self._handing_over = 0
        self._failure: Exception | None = None
        self._is_stopped = False
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
        self._waiters = Waiters(self.core)
        self._contact = Contact(silence_seconds=2 * settings.election_seconds_max)

    def _new_thread(self, name: str) -> Callable[[Callable[[], object]], Awaitable[object]]:
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._executors.append(executor)

        async def run(call: Callable[[], object]) -> object:
            return await asyncio.get_running_loop().run_in_executor(executor, call)

        return run

    # ---- Agreement

    @property
    def node_id(self) -> str:
        return self.core.node_id

    @property
    def is_leader(self) -> bool:
        return self.core.leads and not self._is_stopped

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

    def unreachable(self) -> Mapping[str, float]:
        return self._contact.unreachable({*self.core.members} - {self.node_id}, self.core._now())

    async def propose(self, data: bytes) -> object:
        return await self._propose(DATA + data)

    async def barrier(self) -> None:
        if not self.is_leader:
            raise self._not_leader()
        self._wake.set()
        try:
            async with asyncio.timeout(self._settings.election_seconds_max):
                await self._waiters.read()
        except TimeoutError:
            raise Unavailable("a majority of the managers does not answer") from None

    async def leadership(self, seen: int) -> int:
        return await self._waiters.leadership(seen)

    async def wait_applied(self, index: int) -> None:
        """Raises Unavailable when this manager stops before."""
        await self._waiters.applied(index)

    # ---- membership

    async def add_member(self, member: pb.RaftMember) -> None:
        """Brings a manager up to date, then lets it vote. Leader only; repeating it is safe.

        Changes of several managers wait for each other. Raises NotLeader, or Unavailable
        when the manager could not be reached or did not catch up.
        """
        if not self.is_leader:
            raise self._not_leader()
        known_address = self.core.members.get(member.node_id)
        if known_address == member.address:
            return
        try:
            if known_address is None:
                await self._bring_up_to_date(member)
            # One that votes already is reached, and brought up to date, at its new address.
            await self._change_membership(pb.MembershipChange.ADD, member)
        finally:
            self._on_core(lambda: self.core.drop_learner(member.node_id))

    async def _bring_up_to_date(self, member: pb.RaftMember) -> None:
        self._on_core(lambda: self.core.add_learner(member))
        try:
            async with asyncio.timeout(CATCH_UP_SECONDS_MAX):
                while not self.core.learner_is_current(member.node_id):
                    if not self.is_leader:
                        raise self._not_leader()
                    await asyncio.sleep(JOIN_POLL_SECONDS)
        except TimeoutError:
            raise Unavailable(
                f"the new manager at {member.address} could not be brought up to date: "
                "is that address reachable from this manager?"
            ) from None

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
        """Hands the lead to `target`; True once this manager no longer leads.

        New writes wait meanwhile, or no target would ever be up to date under load.
        False after one election timeout; raises Unavailable when this manager stops.
        """
        if target not in self.core.members or target == self.node_id:
            return False
        self._handing_over += 1
        try:
            async with asyncio.timeout(self._settings.election_seconds_max):
                asked = False
                while self.core.state == LEADER:
                    if not asked and self.core.transfer_leadership(target):
                        asked = True
                        self._wake.set()
                    await self._waiters.next_round()
                return asked
        except TimeoutError:
            return False
        finally:
            self._handing_over -= 1
            self._wake.set()

    # ---- PeerEvents

    def on_message(self, peer: str, message: pb.RaftMessage) -> None:
        self._contact.heard(peer, self.core._now())
        self._on_core(lambda: self.core.receive(peer, message))

    def on_connected(self, peer: str) -> None:
        self._contact.connected(peer, self.core._now())
        self._on_core(lambda: self.core.peer_connected(peer))

    def on_disconnected(self, peer: str) -> None:
        self._contact.disconnected(peer, self.core._now())
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
        except Exception as error:
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
        if not (self._handing_over and self.core.state == LEADER):
            self.core.take_proposals(self._proposals)
        self._note_commit()
        self.core.replicate()
        if self.core.pending_install is not None:
            await self._install(*self.core.pending_install)
        if self._files.journal.dirty:
            await self._in_thread(self._files.journal.sync)
        self._release_messages()
        self.core.advance()
        self._release_messages_if_synced()
        self._update_peers()
        self._contact.leader_is(self.core.leader_id, self.core._now())
        self._waiters.round_done((self.is_leader, self.core.leader_id, self.core.term), self._not_leader())
        is_due = self._snapshot_task is None and self.core.snapshot_is_due()
        if is_due and asyncio.get_running_loop().time() >= self._snapshot_not_before:
            self._snapshot_task = asyncio.create_task(self._take_snapshot())

    def _note_commit(self) -> None:
        """Keeps the commit index beside what is written anyway: by itself it is not worth a sync."""
        now = asyncio.get_running_loop().time()
        if self._files.journal.dirty or now >= self._commit_note_due:
            self._files.journal.onOneSecondTimer()
            self._commit_note_due = now + COMMIT_NOTE_SECONDS

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
            self._keep_snapshot(snapshot.last_index, data)
            return snapshot

        try:
            snapshot = await self._in_thread(verify_and_keep)
        except SnapshotCorrupt as error:
            log.error("snapshot refused", sender=sender, error=str(error))
            return
        assert isinstance(snapshot, Snapshot)
        self.core.install(sender, snapshot)

    async def _take_snapshot(self) -> None:
        try:
            header, encode = self.core.begin_snapshot()

            def write() -> None:
                snapshot = Snapshot(
                    header.last_index, header.last_term, list(header.members), encode(), header.generation
                )
                self._keep_snapshot(header.last_index, snapshot.encode())

            await self._in_snapshot_thread(write)
        except Exception:
            # The log grows until it works again: a full disk may be emptied by then.
            log.exception("snapshot not written", again_in_seconds=SNAPSHOT_RETRY_SECONDS)
            self._snapshot_not_before = asyncio.get_running_loop().time() + SNAPSHOT_RETRY_SECONDS
        else:
            self._on_core(lambda: self.core.finish_snapshot(header.last_index))
        finally:
            self._snapshot_task = None

    def _keep_snapshot(self, last_index: int, encoded: bytes) -> None:
        """In a thread. One's own and the leader's may be written at once: the newer stays."""
        with self._snapshot_lock:
            if last_index > self._snapshot_kept:
                self._files.snapshot_file.write(encoded)
                self._snapshot_kept = last_index

    # ---- telling others

    def _update_peers(self) -> None:
        peers = dict(self.core.peers)
        if peers != self._peers:
            self._peers = peers
            self._transport.set_peers(peers)

    async def _propose(self, command: bytes) -> object:
        if self._is_stopped:
            raise Unavailable(f"this manager is stopping: {self._failure or 'it no longer takes part'}")
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
        self._is_stopped = True
        for _, callback in self._proposals:
            callback(None, Outcome.NOT_LEADER)
        self._proposals.clear()
        self.core._answer_all_unknown()
        self._waiters.stop()
        self._waiters.leadership_is((False, None, self.core.term))
        self._transport.set_peers({})
        if self._snapshot_task is not None:
            self._snapshot_task.cancel()
            await asyncio.gather(self._snapshot_task, return_exceptions=True)
        for executor in self._executors:
            # What is being written is finished before the files are closed.
            await asyncio.to_thread(executor.shutdown)
        self._files.journal.close()
