"""Processes by identity: which process a pid was, whether it still is that one, who shares its session.

Called by the supervisor of the process runtime. A pid alone is never trusted, as the
kernel gives it to another process one day: a record also holds the start time.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessRecord:
    pid: int
    start_ticks: int
    """Clock ticks from boot to the start of the process; unlike the pid it does not come back."""
    session: int = field(compare=False)
    """At the time of the record: a process may leave for a session of its own."""


def parse_stat(line: str) -> ProcessRecord | None:
    """The record of a line of /proc/PID/stat; None for an empty or torn line."""
    pid, _, _ = line.partition(" ")
    # The name of the program stands in parentheses and may hold anything.
    fields = line.rpartition(")")[2].split()
    if not pid.isdecimal() or len(fields) < 20:
        return None
    return ProcessRecord(pid=int(pid), session=int(fields[3]), start_ticks=int(fields[19]))


def read_record(pid: int) -> ProcessRecord | None:
    """The process that has this pid now, also when it is a zombie; None when there is none."""
    try:
        return parse_stat((_PROC / str(pid) / "stat").read_text(errors="replace"))
    except OSError:
        return None


def boot_id() -> str:
    """Changes with every boot: records of another boot are of processes that are gone."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def send_signal(record: ProcessRecord, signal_number: int) -> bool:
    """False when the process is gone. Never reaches another process that was given the same pid."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return False
    try:
        if read_record(record.pid) != record:
            return False
        signal.pidfd_send_signal(descriptor, signal_number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


async def has_ended(record: ProcessRecord) -> None:
    """Returns when the process has ended, be it a child or not; a zombie has ended."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        if read_record(record.pid) != record:
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


def living_processes() -> list[ProcessRecord]:
    """Every process of the machine that is not a zombie. Reads /proc: call it in a thread."""
    records = []
    for entry in os.scandir(_PROC):
        if not entry.name.isdecimal():
            continue
        try:
            line = Path(entry.path, "stat").read_text(errors="replace")
        except OSError:
            continue
        record = parse_stat(line)
        if record is not None and line.rpartition(")")[2].split()[0] not in "ZX":
            records.append(record)
    return records


class ProcessTable:
    """Snapshots of `living_processes`, shared: a hundred tasks that end together cost a scan or two."""

    def __init__(
        self, executor: Executor, scan: Callable[[], list[ProcessRecord]] = living_processes
    ) -> None:
        self._executor = executor
        self._scan = scan
        self._running: asyncio.Task[list[ProcessRecord]] | None = None
        self._next: asyncio.Task[list[ProcessRecord]] | None = None

    async def snapshot(self) -> list[ProcessRecord]:
        """A scan that began after this call."""
        if self._next is None:
            self._next = asyncio.create_task(self._scan_after(self._running))
        return await asyncio.shield(self._next)

    async def _scan_after(self, running: asyncio.Task[list[ProcessRecord]] | None) -> list[ProcessRecord]:
        if running is not None:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._scan)
