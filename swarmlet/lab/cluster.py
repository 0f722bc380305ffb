"""The lab as a whole: making it, hurting it, asking how it is, and leaving nothing behind.

A `Lab` holds no state of its own beside its layout: processes, cuts and the cluster's
own view are looked up each time, so any number of commands can work on one lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from swarmlet.api import pb
from swarmlet.api.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SwarmletError,
    Unavailable,
)
from swarmlet.lab import containers, cuts, example, processes
from swarmlet.lab import layout as layouts
from swarmlet.lab.client import NodeClient, told
from swarmlet.lab.layout import Layout, NodeLayout

T = TypeVar("T")

UP_SECONDS_MAX = 60.0
READY_SECONDS_MAX = 20.0
VIEW_SECONDS_MAX = 1.5
"""How long one manager may take to say what it knows."""
_LOOK_SECONDS = 0.1
_LOG_LINES = 12


@dataclass(frozen=True)
class NodeStatus:
    name: str
    host: str
    address: str
    role: str
    state: str
    """"killed", "paused" or "cut" where the lab did that, else what the leader sees: "Ready", "Down", ..."""
    leader: bool = False


class Lab:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @classmethod
    def load(cls, directory: Path) -> Lab:
        """The lab in `directory`; raises NotFound when there is none."""
        return cls(layouts.load(directory))

    # ---- one node --------------------------------------------------------

    def connect(self, name: str) -> NodeClient:
        return NodeClient(self.layout.node(name).socket)

    def pids(self, name: str) -> frozenset[int]:
        """Every live process of the node: daemon and tasks."""
        node = self.layout.node(name)
        group = cuts.group_path(self.layout.id, name)
        return processes.marked(node.marker) | (processes.members(group) if group else frozenset())

    def daemon_pids(self, name: str) -> frozenset[int]:
        """The node's daemon: of its processes the ones whose command line names its socket."""
        wanted = str(self.layout.node(name).socket).encode()
        found = set()
        for pid in self.pids(name):
            with contextlib.suppress(OSError):
                arguments = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
                if wanted in arguments and b"daemon" in arguments:
                    found.add(pid)
        return frozenset(found)

    async def start(self, name: str) -> None:
        """Starts a node that is not running; returns when its daemon answers.

        Raises FailedPrecondition when it runs already, or with the last lines of its
        log when it ends instead.
        """
        if self.daemon_pids(name):
            raise FailedPrecondition(f"{name} is running already")
        await self._await_socket(self.layout.node(name), self._spawn(name))

    async def kill(self, name: str) -> None:
        """Power loss: the daemon and all tasks of the node die at once."""
        node = self.layout.node(name)
        # The daemon first: it must not see its containers die.
        await asyncio.to_thread(processes.kill_all, lambda: self.pids(name))
        if self.layout.runtime == "docker" and node.node_id:
            await asyncio.to_thread(containers.kill, node.node_id)

    async def pause(self, name: str) -> None:
        """Freezes every process of the node. Raises FailedPrecondition when it has none."""
        node = self.layout.node(name)
        if not self.pids(name):
            raise FailedPrecondition(f"{name} is not running")
        await asyncio.to_thread(processes.stop_all, lambda: self.pids(name))
        if self.layout.runtime == "docker" and node.node_id:
            await asyncio.to_thread(containers.pause, node.node_id)

    async def resume(self, name: str) -> None:
        node = self.layout.node(name)
        if not self.pids(name):
            raise FailedPrecondition(f"{name} is not running; `swarmlet lab start {name}` starts it")
        if self.layout.runtime == "docker" and node.node_id:
            await asyncio.to_thread(containers.unpause, node.node_id)
        processes.send(self.pids(name), signal.SIGCONT)

    async def cut(self, name: str) -> None:
        """No packets to or from the node any more. Needs root; see `cuts`."""
        node = self.layout.node(name)
        cuts.require_cut()
        addresses: list[str] = []
        if self.layout.runtime == "docker" and node.node_id:
            addresses = await asyncio.to_thread(containers.addresses, node.node_id)
        index = self.layout.nodes.index(node) + 1
        daemons = self.daemon_pids(name)
        await asyncio.to_thread(cuts.cut, self.layout.id, name, index, addresses, daemons)

    async def heal(self, name: str) -> None:
        self.layout.node(name)
        await asyncio.to_thread(cuts.heal, self.layout.id, name)

    # ---- the cluster's view ----------------------------------------------

    def live_managers(self) -> list[NodeLayout]:
        """Managers, as laid out, whose daemon runs and is not frozen."""
        return [
            node
            for node in self.layout.managers
            if any(not processes.is_stopped(pid) for pid in self.daemon_pids(node.name))
        ]

    async def view(self) -> tuple[str, dict[str, pb.Node]]:
        """What the cluster knows of its nodes, by name, and the leader's name.

        The leader's own word if it can be had, else that of any manager that answers;
        raises Unavailable when none does. Dead nodes cost no waiting.
        """
        cut = cuts.cut_nodes(self.layout.id)
        asked = [node for node in self.live_managers() if node.name not in cut] or self.live_managers()
        answers = await asyncio.gather(*(self._ask(node) for node in asked))
        heard = [answer for answer in answers if answer is not None]
        if not heard:
            raise Unavailable("no manager of the lab answers; `swarmlet lab status` shows its nodes")
        info, nodes = next((each for each in heard if each[0].node_id == each[0].leader_id), heard[0])
        by_id = {node.node_id: node.name for node in self.layout.nodes if node.node_id}
        named = {by_id[node.id]: node for node in nodes if node.id in by_id}
        return by_id.get(info.leader_id, ""), named

    async def leader(self) -> str:
        """The leader's name; raises Unavailable while there is none that answers."""
        name, _ = await self.view()
        if not name or name not in [node.name for node in self.live_managers()]:
            raise Unavailable("the lab has no leader right now")
        return name

    async def statuses(self) -> list[NodeStatus]:
        """How every node is. Works whatever is dead."""
        leader = ""
        known: dict[str, pb.Node] = {}
        with contextlib.suppress(Unavailable):
            leader, known = await self.view()
        cut = cuts.cut_nodes(self.layout.id)
        return [self._status(node, known.get(node.name), leader, cut) for node in self.layout.nodes]

    async def wait_ready(self, names: Iterable[str], *, timeout: float = READY_SECONDS_MAX) -> None:
        """Returns when all of `names` are Ready, and Reachable where they manage.

        Raises Unavailable, saying who is not, after `timeout` seconds.
        """
        wanted = set(names)
        missing = ", ".join(sorted(wanted))
        try:
            async with asyncio.timeout(timeout):
                async for leader, nodes in self._views():
                    late = [name for name in sorted(wanted) if not _is_ready(nodes.get(name))]
                    if not late and leader:
                        return
                    missing = ", ".join(late) or "a leader"
        except TimeoutError:
            raise Unavailable(f"not ready after {timeout:.0f} s: {missing}") from None

    async def wait_state(self, name: str, state: pb.NodeState.ValueType, *, timeout: float) -> None:
        """Returns when the leader sees the node in `state`; raises Unavailable after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                async for leader, nodes in self._views():
                    if leader and name in nodes and nodes[name].status.state == state:
                        return
        except TimeoutError:
            wanted = pb.NodeState.Name(state)
            raise Unavailable(f"{name} is not {wanted} after {timeout:.0f} s") from None

    # ---- making it -------------------------------------------------------

    async def form_swarm(self) -> None:
        """Starts every node and makes them one swarm; returns when all are Ready.

        Raises the first error, with the end of the log of the node it befell.
        """
        nodes = self.layout.nodes
        started = {node.name: self._spawn(node.name) for node in nodes}
        first, *others = nodes
        await self._await_socket(first, started[first.name])
        async with NodeClient(first.socket) as client:
            request = pb.SwarmInitRequest(advertise_addr=first.cluster_address)
            made = await self._with_log(first, told(client.local.Init(request, timeout=READY_SECONDS_MAX)))
        first.node_id = made.node_id
        self.layout.save()
        async with asyncio.TaskGroup() as joins:
            for node in others:
                token = made.manager_join_token if node.role == "manager" else made.worker_join_token
                joins.create_task(self._join(node, started[node.name], token, made.join_address))
        await self.wait_ready(node.name for node in nodes)

    # ---- inside ----------------------------------------------------------

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        node = self.layout.node(name)
        node.directory.mkdir(mode=0o700, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SWARMLET_")}
        environment[layouts.LAB_VARIABLE] = str(self.layout.directory)
        environment[layouts.NODE_VARIABLE] = str(node.directory)
        return processes.spawn(
            daemon_command(node, self.layout.runtime),
            log=node.log,
            environment=environment,
            group=cuts.make_group(self.layout.id, name),
        )

    async def _await_socket(self, node: NodeLayout, process: subprocess.Popen[bytes]) -> None:
        async with NodeClient(node.socket) as client:
            answer = asyncio.ensure_future(client.info(timeout=UP_SECONDS_MAX, wait=True))
            end = asyncio.ensure_future(processes.ended(process))
            try:
                await asyncio.wait({answer, end}, return_when=asyncio.FIRST_COMPLETED)
                if end.done() and not answer.done():
                    raise FailedPrecondition(
                        f"the daemon of {node.name} ended with status {end.result()}{_log_end(node.log)}"
                    )
                await self._with_log(node, answer)
            finally:
                for waiter in (answer, end):
                    waiter.cancel()
                await asyncio.gather(answer, end, return_exceptions=True)

    async def _join(
        self, node: NodeLayout, process: subprocess.Popen[bytes], token: str, address: str
    ) -> None:
        await self._await_socket(node, process)
        async with NodeClient(node.socket) as client:
            request = pb.SwarmJoinRequest(
                token=token, remote_address=address, advertise_addr=node.cluster_address
            )
            call = told(client.local.Join(request, timeout=READY_SECONDS_MAX))
            node.node_id = (await self._with_log(node, call)).node_id
        self.layout.save()

    async def _with_log(self, node: NodeLayout, call: Awaitable[T]) -> T:
        try:
            return await call
        except SwarmletError as error:
            raise type(error)(f"{node.name}: {error.message}{_log_end(node.log)}") from error

    async def _ask(self, node: NodeLayout) -> tuple[pb.SwarmInfoResponse, list[pb.Node]] | None:
        try:
            async with NodeClient(node.socket) as client:
                info, nodes = await asyncio.gather(
                    client.info(timeout=VIEW_SECONDS_MAX), client.nodes(timeout=VIEW_SECONDS_MAX)
                )
        except SwarmletError:  # no leader, not in a swarm, just dying: it has nothing to say
            return None
        return info, nodes

    async def _views(self) -> AsyncIterator[tuple[str, dict[str, pb.Node]]]:
        """The cluster's view, again and again: who leads and who is reachable is in no table to watch."""
        while True:
            with contextlib.suppress(Unavailable):
                yield await self.view()
            await asyncio.sleep(_LOOK_SECONDS)

    def _status(
        self, node: NodeLayout, known: pb.Node | None, leader: str, cut: frozenset[str]
    ) -> NodeStatus:
        daemon = self.daemon_pids(node.name)
        if not daemon:
            state = "killed"
        elif all(processes.is_stopped(pid) for pid in daemon):
            state = "paused"
        elif node.name in cut:
            state = "cut"
        elif known is None:
            state = "Unknown"
        else:
            state = pb.NodeState.Name(known.status.state).removeprefix("NODE_STATE_").capitalize()
        role = node.role
        if known is not None:
            role = "manager" if known.spec.role == pb.NODE_ROLE_MANAGER else "worker"
        return NodeStatus(node.name, node.host, node.address, role, state, node.name == leader)


async def up(directory: Path, *, managers: int, workers: int, runtime: str) -> Lab:
    """Makes a lab that is ready when it returns; on failure nothing is left and the reason is raised.

    Raises FailedPrecondition when there is a lab, or something else, in `directory`.
    """
    directory = directory.absolute()
    if layouts.exists(directory) or processes.marked(layouts.lab_marker(directory)):
        raise FailedPrecondition(
            f"there is a lab in {directory} already; `swarmlet lab down` ends it, --dir chooses another place"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FailedPrecondition(f"{directory} is in use and no lab; choose an empty directory with --dir")
    layout = layouts.plan(directory, managers=managers, workers=workers, runtime=chosen_runtime(runtime))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with exclusive(directory):
            layout.save()
            lab = Lab(layout)
            try:
                async with asyncio.timeout(UP_SECONDS_MAX):
                    await lab.form_swarm()
            except TimeoutError:
                clear(directory)
                raise Unavailable(f"the lab is not ready after {UP_SECONDS_MAX:.0f} s") from None
            except BaseException as error:
                clear(directory)
                raise _first(error) from error
    except OSError as error:
        raise FailedPrecondition(f"cannot make a lab in {directory}: {error}") from error
    return lab


def down(directory: Path) -> None:
    """Ends the lab in `directory` and removes every trace of it; blocking.

    Works on what a lab left that was killed in the middle, or that lost its files.
    Raises NotFound when there is nothing of a lab.
    """
    directory = directory.absolute()
    has_files = layouts.exists(directory)
    if not has_files and not traces(directory):
        raise NotFound(f"no lab in {directory}; `swarmlet lab up` makes one")
    with exclusive(directory) if has_files else contextlib.nullcontext():
        _remove_containers(directory)
        clear(directory)


def traces(directory: Path) -> list[str]:
    """What there is of a lab in `directory`, whether or not its files are: for the check that nothing is."""
    lab_id = layouts.lab_id(directory)
    found = [f"process {pid}" for pid in sorted(processes.marked(layouts.lab_marker(directory)))]
    found += [str(group) for group in cuts.groups(lab_id)]
    found += [f"packet filter table {cuts.table(lab_id)}"] if cuts.cut_nodes(lab_id) else []
    return found + ([str(path) for path in layouts.owned_entries(directory)] if directory.is_dir() else [])


def _remove_containers(directory: Path) -> None:
    """Which nodes had containers is known from the layout alone; without it there is nothing to go by."""
    try:
        layout = layouts.load(directory)
    except (NotFound, FailedPrecondition):
        return
    if layout.runtime != "docker":
        return
    # Daemons first: they would replace the containers.
    processes.kill_all(lambda: processes.marked(layouts.lab_marker(directory)))
    for node in layout.nodes:
        if node.node_id:
            containers.remove(node.node_id)
    containers.remove_image(example.IMAGE)


def clear(directory: Path) -> None:
    """Kills and removes what the markers and names show to be the lab's."""
    lab_id = layouts.lab_id(directory)
    groups = cuts.groups(lab_id)

    def everything() -> frozenset[int]:
        grouped = [processes.members(group) for group in groups]
        return processes.marked(layouts.lab_marker(directory)).union(*grouped)

    processes.kill_all(everything)
    cuts.heal_all(lab_id)
    cuts.remove_groups(lab_id)
    if not directory.is_dir():
        return
    for path in layouts.owned_entries(directory):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    with contextlib.suppress(OSError):  # somebody else's files are in it
        directory.rmdir()


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Held while a lab is being made or ended; let go by the kernel when its holder dies.

    Raises FailedPrecondition while another process holds it.
    """
    with (directory / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(f"the lab in {directory} is being made or ended right now") from None
        yield


def chosen_runtime(runtime: str) -> str:
    """ "auto" made up: docker where an engine answers this user, else process."""
    if runtime == "auto":
        return "docker" if containers.engine_answers() else "process"
    if runtime not in ("docker", "process"):
        raise InvalidArgument(f"unknown runtime {runtime!r}; there are auto, docker and process")
    if runtime == "docker" and not containers.engine_answers():
        raise FailedPrecondition(
            f"no Docker Engine answers at {containers.engine_url()}; start it, or use --runtime process"
        )
    return runtime


def program() -> list[str]:
    """The command line of this very installation."""
    script = Path(sys.executable).with_name("swarmlet")
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", "from swarmlet.cli.main import main; main()"]


def daemon_command(node: NodeLayout, runtime: str) -> list[str]:
    options = {
        "--state-dir": str(node.state_dir),
        "--socket": str(node.socket),
        "--listen-addr": node.cluster_address,
        "--advertise-addr": node.cluster_address,
        "--runtime": runtime,
        "--hostname": node.name,
        "--log-level": "info",
        "--log-format": "text",
    }
    if runtime == "docker":
        options["--docker-host"] = containers.engine_url()
    return [*program(), "daemon", *(word for pair in options.items() for word in pair)]


def log_tail(path: Path, lines: int) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def _log_end(path: Path) -> str:
    tail = log_tail(path, _LOG_LINES)
    return "\nlast lines of its log:\n  " + "\n  ".join(tail) if tail else ""


def _is_ready(node: pb.Node | None) -> bool:
    if node is None or node.status.state != pb.NODE_STATE_READY:
        return False
    manages = node.spec.role == pb.NODE_ROLE_MANAGER
    return not manages or node.manager_status.reachability == pb.REACHABILITY_REACHABLE


def _first(error: BaseException) -> BaseException:
    """The first error in a group: the others are mostly its echo."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
