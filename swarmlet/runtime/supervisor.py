"""A program under a tiny shell that outlives the daemon and writes down how the program ended.

Called by the process runtime. In the task's directory the shell leaves three files:
`supervisor` and `program` (their lines of /proc/PID/stat, that is pid and start time)
and `exit` (the exit code). So a daemon that was killed finds its tasks again, and
learns the exit code of a program that ended meanwhile. Knows nothing of tasks or specs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from swarmlet.runtime import procfs
from swarmlet.runtime.procfs import ProcessRecord, ProcessTable

KILLED_EXIT_CODE = 128 + signal.SIGKILL
_SUPERVISOR_SECONDS_MAX = 2.0
"""How long the supervisor may take to write the exit code of a program that was killed."""
_SWEEPS_MAX = 10

# The program gets its signals' defaults back, as a subshell resets traps. `set -C` makes a
# second supervisor of the same task impossible. The line that goes to standard output
# tells the daemon that the program runs; the daemon may be dead, hence the trap for PIPE.
_SCRIPT = """\
trap : HUP INT TERM QUIT USR1 USR2
read -r stat </proc/self/stat
set -C
echo "$stat" >supervisor || exit 125
set +C
(
read -r stat </proc/self/stat
echo "$stat" >program
trap '' PIPE
echo "$stat"
trap - PIPE
exec >>stdout.log 2>>stderr.log
{joins}cd "$0" || exit 126
exec "$@"
)
echo $? >exit
"""

# Run as root between the shell and the program, so that the program's user can neither
# forge the files of its supervisor nor signal it.
_DROP_ROOT = """\
import os, resource, sys
uid, gid, groups, limits, *command = sys.argv[1:]
for limit in filter(None, limits.split(",")):
    number, soft, hard = map(int, limit.split(":"))
    resource.setrlimit(number, (soft, hard))
if uid:
    os.setgroups([int(group) for group in groups.split(",") if group])
    os.setgid(int(gid))
    os.setuid(int(uid))
os.execvp(command[0], command)
"""

_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Credentials:
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Program:
    """What to run. `command[0]` is a path or is looked up in PATH of `environment`."""

    command: Sequence[str]
    environment: Mapping[str, str]
    working_directory: Path
    credentials: Credentials | None = None
    resource_limits: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Soft and hard by RLIMIT number."""
    cgroups: Sequence[Path] = ()
    """Directories of control groups that the program is put in."""

    def shell_words(self) -> list[str]:
        words = list(self.command)
        if self.credentials is not None or self.resource_limits:
            limits = ",".join(f"{n}:{soft}:{hard}" for n, (soft, hard) in self.resource_limits.items())
            who = self.credentials
            identity = (str(who.uid), str(who.gid), ",".join(map(str, who.groups))) if who else ("", "", "")
            words = [sys.executable, "-I", "-S", "-c", _DROP_ROOT, *identity, limits, *words]
        # A POSIX shell drops variables whose names it cannot have itself; env(1) puts them back.
        lost = [
            f"{name}={value}" for name, value in self.environment.items() if not _SHELL_NAME.fullmatch(name)
        ]
        return ["env", *lost, *words] if lost else words


class SupervisedProgram:
    """One program that runs or has ended. Made by `launch` or `adopt`; lives until the daemon ends."""

    def __init__(self, directory: Path, program: ProcessRecord | None, supervisor: ProcessRecord) -> None:
        self._program = program
        self.exit_code: int | None = None
        self.ended = asyncio.Event()
        self._directory = directory
        self._supervisor = supervisor
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The program's own; 0 once it has ended."""
        return 0 if self.exit_code is not None or self.program is None else self.program.pid

    @property
    def program(self) -> ProcessRecord | None:
        """None in the instant before the shell has written it down."""
        if self._program is None:
            self._program = _read_recorded(self._directory / "program")
        return self._program

    def watch(self, table: ProcessTable) -> None:
        self._watch = asyncio.create_task(self._until_ended(table))

    def unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def signal(self, signal_number: int) -> None:
        """To the program alone; nothing happens once it has ended."""
        if self.exit_code is None and self.program is not None:
            procfs.send_signal(self.program, signal_number)

    async def stop(self, stop_signal: int, grace_seconds: float) -> None:
        """`stop_signal` to the program, after the grace period SIGKILL; returns when it has ended."""
        self.signal(stop_signal)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), grace_seconds)
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to the program and all of its session; returns when it has ended."""
        while not self.ended.is_set():
            self.signal(signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), _SUPERVISOR_SECONDS_MAX)
                return
            procfs.send_signal(self._supervisor, signal.SIGKILL)

    async def _until_ended(self, table: ProcessTable) -> None:
        await procfs.has_ended(self._supervisor)
        _reap(self._supervisor.pid)
        exit_code = _read_exit_code(self._directory)
        for _ in range(_SWEEPS_MAX):
            remaining = self._survivors(await table.snapshot())
            if not remaining:
                break
            for record in remaining:
                procfs.send_signal(record, signal.SIGKILL)
            await asyncio.wait([asyncio.create_task(procfs.has_ended(r)) for r in remaining], timeout=1.0)
        self.exit_code = KILLED_EXIT_CODE if exit_code is None else exit_code
        self.ended.set()

    def _survivors(self, processes: list[ProcessRecord]) -> list[ProcessRecord]:
        """What is left in the session of the supervisor, which has ended, and in one of the program's own."""
        leaders = [self._supervisor] if self.program is None else [self._supervisor, self.program]
        living = {record.pid: record for record in processes}
        # A number that is in use again was free before, which the kernel allows only to an empty session.
        sessions = {leader.pid for leader in leaders if living.get(leader.pid, leader) == leader}
        return [record for record in processes if record.session in sessions or record == self.program]


async def launch(directory: Path, program: Program, executor: Executor) -> None:
    """Starts `program` with its files in `directory`, which exists; returns when it runs.

    Does nothing when another supervisor already has the directory. `adopt` then gives
    the program, or None when the shell could not begin. Raises OSError. Not to be cancelled.
    """
    read_end, write_end = os.pipe()
    try:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(executor, _spawn, directory, program, write_end)
        finally:
            os.close(write_end)
        await _readable(read_end)
    finally:
        os.close(read_end)


def adopt(directory: Path, table: ProcessTable, *, same_boot: bool = True) -> SupervisedProgram | None:
    """The program that was once started in `directory`, running or not; None when none was."""
    supervisor = _read_recorded(directory / "supervisor")
    if supervisor is None:
        return None
    adopted = SupervisedProgram(directory, _read_recorded(directory / "program"), supervisor)
    if same_boot:
        adopted.watch(table)
    else:
        exit_code = _read_exit_code(directory)
        adopted.exit_code = KILLED_EXIT_CODE if exit_code is None else exit_code
        adopted.ended.set()
    return adopted


async def run_briefly(program: Program, executor: Executor, timeout_seconds: float) -> int:
    """Runs a command without a supervisor and returns its exit code; killed (137) after the timeout."""

    def spawn() -> subprocess.Popen[bytes]:
        who = program.credentials
        return subprocess.Popen(
            list(program.command),
            env=dict(program.environment),
            cwd=program.working_directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            user=who.uid if who else None,
            group=who.gid if who else None,
            extra_groups=who.groups if who else None,
        )

    loop = asyncio.get_running_loop()
    try:
        process = await loop.run_in_executor(executor, spawn)
    except OSError:
        return 127
    record = procfs.read_record(process.pid)
    try:
        if record is not None:
            await asyncio.wait_for(procfs.has_ended(record), timeout_seconds)
    except TimeoutError:
        return KILLED_EXIT_CODE
    finally:
        # Also when cancelled; the child is not reaped yet, so the group is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode


def _spawn(directory: Path, program: Program, started: int) -> None:
    joins = "".join(f"echo 0 >{shlex.quote(str(group / 'cgroup.procs'))}\n" for group in program.cgroups)
    shell = subprocess.Popen(
        [
            "/bin/sh",
            "-c",
            _SCRIPT.format(joins=joins),
            str(program.working_directory),
            *program.shell_words(),
        ],
        cwd=directory,
        env=dict(program.environment),
        stdin=subprocess.DEVNULL,
        stdout=started,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # It is meant to outlive us, and is reaped by pid when its end is seen: Popen shall not wait for it.
    shell.returncode = 0


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # adopted: init reaps it


def _read_recorded(path: Path) -> ProcessRecord | None:
    try:
        return procfs.parse_stat(path.read_text(errors="replace"))
    except FileNotFoundError:
        return None


def _read_exit_code(directory: Path) -> int | None:
    try:
        text = (directory / "exit").read_text().strip()
    except FileNotFoundError:
        return None
    return int(text) if text.isdecimal() else None
