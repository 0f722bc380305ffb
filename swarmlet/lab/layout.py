"""What a lab is made of: its directory, nodes, addresses and sockets, kept in `lab.json`.

The layout is written before the first process is started, so that whatever was begun
can be found and ended by somebody else. It says what was laid out, never what state a
node is in: that is asked of the machine each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from swarmlet.api.errors import FailedPrecondition, InvalidArgument, NotFound

LAB_VARIABLE = "SWARMLET_LAB"
NODE_VARIABLE = "SWARMLET_LAB_NODE"
"""In the environment of every process of a node: how the lab finds them."""

CLUSTER_PORT = 2377
NODES_MAX = 50
# The kernel takes 107 bytes in sun_path; the rest is room for what clients put around it.
SOCKET_PATH_MAX = 100

# 127.0 is everybody's, 127.64 to 127.127 the process runtime's tasks', 127.255 has the broadcast address.
_NETWORKS = [*range(1, 64), *range(128, 255)]

_LAYOUT_FILE = "lab.json"
_OWN_FILES = (_LAYOUT_FILE, f"{_LAYOUT_FILE}.new", "lock", "web.py")
_NODE_NAME = re.compile(r"(manager|worker)[1-9][0-9]*")


@dataclass
class NodeLayout:
    name: str
    role: str
    """"manager" or "worker", as laid out; promotions are the cluster's business."""
    address: str
    directory: Path
    node_id: str = ""
    """Empty until the node is part of the swarm."""

    @property
    def socket(self) -> Path:
        return self.directory / "swarmlet.sock"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def log(self) -> Path:
        return self.directory / "daemon.log"

    @property
    def host(self) -> str:
        """The value for `swarmlet --host`."""
        return f"unix://{self.socket}"

    @property
    def cluster_address(self) -> str:
        return f"{self.address}:{CLUSTER_PORT}"

    @property
    def marker(self) -> bytes:
        return f"{NODE_VARIABLE}={self.directory}".encode()


@dataclass
class Layout:
    directory: Path
    runtime: str
    nodes: list[NodeLayout] = field(default_factory=list)

    @property
    def id(self) -> str:
        return lab_id(self.directory)

    @property
    def managers(self) -> list[NodeLayout]:
        return [node for node in self.nodes if node.role == "manager"]

    def node(self, name: str) -> NodeLayout:
        """Raises NotFound, naming the nodes there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes)
        raise NotFound(f"no node {name!r} in the lab {self.directory}; its nodes are {names}")

    def save(self) -> None:
        """Writes the layout whole or not at all."""
        nodes = [{**asdict(node), "directory": str(node.directory)} for node in self.nodes]
        text = json.dumps({"runtime": self.runtime, "nodes": nodes}, indent=1)
        fresh = self.directory / f"{_LAYOUT_FILE}.new"
        fresh.write_text(text)
        fresh.replace(self.directory / _LAYOUT_FILE)


def lab_id(directory: Path) -> str:
    """Short and stable: names what belongs to the lab outside its directory."""
    return hashlib.sha256(str(directory).encode()).hexdigest()[:8]


def lab_marker(directory: Path) -> bytes:
    return f"{LAB_VARIABLE}={directory}".encode()


def default_directory() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/swarmlet-lab")
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "swarmlet" / "lab"


def exists(directory: Path) -> bool:
    return (directory / _LAYOUT_FILE).exists()


def load(directory: Path) -> Layout:
    """Raises NotFound when there is no lab, FailedPrecondition when its file cannot be read."""
    path = directory / _LAYOUT_FILE
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no lab in {directory}; `swarmlet lab up` makes one") from None
    except OSError as error:
        raise FailedPrecondition(f"cannot read {path}: {error.strerror}") from error
    try:
        raw = json.loads(text)
        nodes = [NodeLayout(**{**node, "directory": Path(node["directory"])}) for node in raw["nodes"]]
        return Layout(directory, raw["runtime"], nodes)
    except (ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(
            f"{path} is not a lab's layout ({error}); "
            f"`swarmlet lab down --dir {directory}` clears what is left"
        ) from error


def plan(
    directory: Path,
    *,
    managers: int,
    workers: int,
    runtime: str,
    is_free: Callable[[str], bool] | None = None,
) -> Layout:
    """Lays out a new lab without touching the disk.

    Raises InvalidArgument for numbers or a directory that cannot work. `is_free` says
    whether a node could listen on an address.
    """
    if managers < 1:
        raise InvalidArgument("a lab needs at least one manager")
    if workers < 0:
        raise InvalidArgument("the number of workers cannot be negative")
    if managers + workers > NODES_MAX:
        raise InvalidArgument(f"a lab has at most {NODES_MAX} nodes, {managers + workers} were asked for")
    names = [f"manager{i + 1}" for i in range(managers)] + [f"worker{i + 1}" for i in range(workers)]
    longest = max(len(str(directory / name / "swarmlet.sock")) for name in names)
    if longest >= SOCKET_PATH_MAX:
        raise InvalidArgument(
            f"{directory} is too long: sockets in it would need paths of {longest} characters, "
            f"less than {SOCKET_PATH_MAX} work; choose a shorter --dir"
        )
    network = _free_network(directory, len(names), is_free or can_listen)
    nodes = [
        NodeLayout(name, name.rstrip("0123456789"), f"{network}.{i + 1}", directory / name)
        for i, name in enumerate(names)
    ]
    return Layout(directory, runtime, nodes)


def can_listen(address: str) -> bool:
    """Whether both cluster ports of a node on `address` are free."""
    for port in (CLUSTER_PORT, CLUSTER_PORT + 1):
        with socket.socket() as probe:
            # As the daemon does: an address that a dead lab has just left is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def _free_network(directory: Path, count: int, is_free: Callable[[str], bool]) -> str:
    """A 127.x.0 in which `count` nodes can listen; the same for the same directory while it is free."""
    start = int(lab_id(directory), 16)
    for offset in range(len(_NETWORKS)):
        network = f"127.{_NETWORKS[(start + offset) % len(_NETWORKS)]}.0"
        if all(is_free(f"{network}.{i + 1}") for i in range(count)):
            return network
    raise FailedPrecondition(f"no 127.x.0.0/24 has port {CLUSTER_PORT} and {CLUSTER_PORT + 1} free")


def owned_entries(directory: Path) -> list[Path]:
    """What a lab made in its directory; nothing else that may lie there."""
    nodes = [
        path
        for path in sorted(directory.iterdir())
        if _NODE_NAME.fullmatch(path.name) and (path / "daemon.log").exists()
    ]
    files = [directory / name for name in _OWN_FILES if (directory / name).exists()]
    # A file of that name in somebody else's directory is somebody else's.
    return [*nodes, *files] if nodes or exists(directory) else []
