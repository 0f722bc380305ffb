"""Taking a node's packets away, and giving them back: `lab cut` and `lab heal`.

A node's processes live in a control group of their own, and nftables sees to which
group a socket belongs. What a cut node's sockets send is marked on its way out; on the
way in, a packet between two sockets of the node passes and its connection with it, any
other packet that leaves or reaches one of its sockets is dropped. Addresses alone would not do: on
loopback a client's address is 127.0.0.1, whichever node it is. Containers of the docker
runtime are outside of the group and matched by address.

Established connections go silent as they do when a cable is pulled: nobody is told.
Needs root, `nft`, and a version 2 control group hierarchy. One table per lab, one pair
of chains per cut node, so that healing is deleting.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from swarmlet.api.errors import FailedPrecondition, PermissionDenied
from swarmlet.lab import processes

_CGROUP_ROOT = Path("/sys/fs/cgroup")
"""Where nft looks groups up by path."""
_GROUP_DEPTH = 1
_MARK_BASE = 0x5A000000
_REMOVE_SECONDS_MAX = 2.0


def group_path(lab_id: str, name: str) -> Path | None:
    """The control group for a node of a lab; None where no version 2 hierarchy can be used."""
    root = _unified_root()
    return root / f"swarmlet-lab-{lab_id}-{name}" if root else None


def make_group(lab_id: str, name: str) -> Path | None:
    """Makes the node's group, or returns None where this user or machine cannot have one."""
    path = group_path(lab_id, name)
    if path is None or os.geteuid() != 0:
        return None
    try:
        path.mkdir(exist_ok=True)
    except OSError:  # a container that sees the hierarchy read-only
        return None
    return path


def groups(lab_id: str) -> list[Path]:
    """The control groups that there are of a lab's nodes."""
    root = _unified_root()
    return sorted(root.glob(f"swarmlet-lab-{lab_id}-*")) if root else []


def remove_groups(lab_id: str) -> None:
    """Removes the groups of all nodes; their processes must have ended."""
    for path in groups(lab_id):
        _remove_group(path)


def _remove_group(path: Path) -> None:
    """The kernel counts a killed process for a moment longer than /proc shows it."""
    deadline = time.monotonic() + _REMOVE_SECONDS_MAX
    while True:
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise FailedPrecondition(
                    f"cannot remove the control group {path}: {error.strerror}"
                ) from error
        time.sleep(0.01)


def table(lab_id: str) -> str:
    return f"swarmlet_lab_{lab_id}"


def cut(
    lab_id: str,
    name: str,
    index: int,
    container_addresses: Sequence[str],
    running: frozenset[int] = frozenset(),
) -> None:
    """Drops every packet between the node and anything else. Raises PermissionDenied or FailedPrecondition.

    `index` is the node's number in the lab, for its mark; `running` are the processes
    that must be cut off now.
    """
    require_cut()
    group = group_path(lab_id, name)
    if group is None or not group.is_dir() or not running <= processes.members(group):
        raise FailedPrecondition(
            f"cannot cut {name}: it does not run in a version 2 control group below {_CGROUP_ROOT}; "
            "only nodes that root started do"
        )
    if name not in cut_nodes(lab_id):
        _nft(rules(lab_id, name, group, _MARK_BASE + index, container_addresses))


def heal(lab_id: str, name: str) -> None:
    """Gives the node its packets back; nothing to do when it is not cut."""
    require_cut()
    remaining = cut_nodes(lab_id) - {name}
    if not remaining:
        _delete_table(lab_id)
    elif name in cut_nodes(lab_id):
        chains = "\n".join(
            f"delete chain inet {table(lab_id)} {name}_{hook}" for hook in ("out", "in", "fwd")
        )
        _nft(chains + "\n")


def heal_all(lab_id: str) -> None:
    """Removes whatever the lab has in the packet filter; for a user who never could cut, nothing."""
    if os.geteuid() == 0 and shutil.which("nft"):
        _delete_table(lab_id)


def cut_nodes(lab_id: str) -> frozenset[str]:
    """Names of the nodes that are cut; empty for a user who cannot look."""
    if os.geteuid() != 0 or not shutil.which("nft"):
        return frozenset()
    shown = subprocess.run(
        ["nft", "list", "table", "inet", table(lab_id)], capture_output=True, text=True, check=False
    )
    return frozenset(re.findall(r"chain (\w+)_out \{", shown.stdout))


def require_cut() -> None:
    """Raises, saying what is missing, unless this user can cut nodes on this machine."""
    if os.geteuid() != 0:
        raise PermissionDenied("cutting a node off needs root: the kernel's packet filter drops its packets")
    if not shutil.which("nft"):
        raise FailedPrecondition("cutting a node off needs nft; install the package nftables")
    if _unified_root() is None:
        raise FailedPrecondition(f"cutting a node off needs version 2 control groups below {_CGROUP_ROOT}")


def rules(lab_id: str, name: str, group: Path, mark: int, container_addresses: Iterable[str]) -> str:
    """The nft script of one cut, applied as one transaction."""
    own = f'socket cgroupv2 level {_GROUP_DEPTH} "{group.relative_to(_CGROUP_ROOT)}"'
    lines = {
        # First of all hooks, before anything may have accepted the packet.
        "out": ["type filter hook output priority raw; policy accept;", f"{own} meta mark set {mark:#x}"],
        "in": [
            "type filter hook input priority raw; policy accept;",
            f"meta mark {mark:#x} {own} ct mark set {mark:#x} accept",
            # Handshakes and resets come from no socket: known by the connection they belong to.
            f"ct mark {mark:#x} accept",
            f"meta mark {mark:#x} drop",
            f"{own} drop",
        ],
        "fwd": ["type filter hook forward priority raw; policy accept;"],
    }
    if addresses := ", ".join(container_addresses):
        lines["out"] += [
            f'meta mark {mark:#x} oifname != "lo" ip daddr != {{ {addresses} }} drop',
            f"meta mark != {mark:#x} ip daddr {{ {addresses} }} drop",
        ]
        # Before the marks: what a container sends carries none.
        lines["in"].insert(1, f"ip saddr {{ {addresses} }} {own} accept")
        lines["in"].append(f"ip saddr {{ {addresses} }} drop")
        lines["fwd"] += [f"ip saddr {{ {addresses} }} drop", f"ip daddr {{ {addresses} }} drop"]
    chains = "\n".join(
        f" chain {name}_{hook} {{\n" + "\n".join(f"  {line}" for line in body) + "\n }"
        for hook, body in lines.items()
    )
    return f"table inet {table(lab_id)} {{\n{chains}\n}}\n"


def _unified_root() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2" and Path(where).is_relative_to(_CGROUP_ROOT):
            return Path(where)
    return None


def _delete_table(lab_id: str) -> None:
    # Declared first, so that deleting a table that is not there succeeds.
    _nft(f"table inet {table(lab_id)} {{}}\ndelete table inet {table(lab_id)}\n")


def _nft(script: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=script, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FailedPrecondition(f"nft refused: {done.stderr.strip() or done.returncode}")
