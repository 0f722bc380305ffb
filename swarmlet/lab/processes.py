"""Finding and ending the processes of a node, by the marker in their environment.

A node's daemon and all its tasks inherit the marker, also tasks that outlived their
daemon; a task that wiped its environment is still found by the control group of its
node where there is one. Linux only: everything is read from /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from swarmlet.api.errors import FailedPrecondition

KILL_SECONDS_MAX = 10.0
_ROUND_SECONDS = 0.02

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Daemons that this process started: they must be waited for, or stay zombies until it ends."""


def marked(marker: bytes) -> frozenset[int]:
    """Pids of the live processes whose environment has exactly the variable `marker` (NAME=value)."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environ = (entry / "environ").read_bytes()
        except OSError:  # ended meanwhile, or somebody else's
            continue
        if marker in environ.split(b"\0"):
            found.add(int(entry.name))
    return frozenset(found - {os.getpid()})


def members(group: Path) -> frozenset[int]:
    """Pids of the live processes in a control group; empty when there is none."""
    try:
        pids = (group / "cgroup.procs").read_text().split()
    except OSError:
        return frozenset()
    return frozenset(pid for pid in map(int, pids) if state(pid) not in ("", "Z"))


def state(pid: int) -> str:
    """The letter of /proc/PID/stat: "T" stopped, "Z" zombie, ...; empty when there is no such process."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return ""
    # The name in parentheses may hold anything, blanks and parentheses too.
    return stat.rpartition(")")[2].split()[0]


def is_stopped(pid: int) -> bool:
    return state(pid) in ("T", "t")


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        except PermissionError as error:
            raise FailedPrecondition(
                f"process {pid} of the lab belongs to another user; use the user who made the lab, or root"
            ) from error


def stop_all(find: Callable[[], frozenset[int]]) -> None:
    """Stops what `find` returns until it returns nothing that still runs: a process may fork meanwhile."""
    # A signal to somebody else's child has no event to wait for: look again.
    deadline = time.monotonic() + KILL_SECONDS_MAX
    while running := {pid for pid in find() if not is_stopped(pid)}:
        if time.monotonic() > deadline:
            raise FailedPrecondition(f"processes {sorted(running)} do not stop")
        send(running, signal.SIGSTOP)
        time.sleep(_ROUND_SECONDS)


def kill_all(find: Callable[[], frozenset[int]]) -> None:
    """Ends what `find` returns as a power failure does.

    Everything is frozen before anything dies, so that nobody sees another's death, and
    dies in the same moment, so that nobody outside waits for the frozen. Blocking;
    returns when `find` finds nothing more.
    """
    deadline = time.monotonic() + KILL_SECONDS_MAX
    while pids := find():
        if time.monotonic() > deadline:
            raise FailedPrecondition(f"processes {sorted(pids)} do not die")
        send(pids, signal.SIGSTOP)
        send(pids, signal.SIGKILL)
        reap()
        time.sleep(_ROUND_SECONDS)
    reap()


def spawn(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str], group: Path | None
) -> subprocess.Popen[bytes]:
    """Starts a daemon in a session of its own, its output appended to `log`.

    With `group`, it enters that control group before its program is loaded: sockets
    belong to the group in which they were made. Where the kernel does not let it, it
    runs outside, and cannot be cut off.
    """
    if group is not None:
        enter = '{ echo $$ > "$0"; } 2>/dev/null; exec "$@"'
        command = ["/bin/sh", "-c", enter, str(group / "cgroup.procs"), *command]
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=dict(environment),
            cwd="/",
            start_new_session=True,
        )
    _children[process.pid] = process
    return process


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Waits for the end of a process that this one started; returns its exit status."""
    await gone(process.pid)
    return process.wait()


async def gone(pid: int) -> None:
    """Waits for the end of any process."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def reap() -> None:
    """Takes note of the daemons that ended, so that none stays a zombie."""
    for pid, process in list(_children.items()):
        with contextlib.suppress(OSError):
            if process.poll() is not None:
                del _children[pid]
