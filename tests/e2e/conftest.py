"""A real lab of real daemons, driven by the command line as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from swarmlet.lab import cluster, layout

COMMAND_SECONDS_MAX = 90.0
SLEEPER = ("none", "sleep", "3600")


@dataclass
class Commands:
    """`swarmlet ...` against one lab. Unless told otherwise, a command must succeed."""

    directory: Path
    host: str = ""

    def swarmlet(
        self,
        *words: str,
        node: str = "",
        stdin: str = "",
        fails: bool = False,
        timeout: float = COMMAND_SECONDS_MAX,
    ) -> str:
        """What the command wrote: to standard output, or with `fails` all that it said."""
        host = self.host if not node else f"unix://{self.directory / node / 'swarmlet.sock'}"
        environment = {**os.environ, "SWARMLET_LAB_DIR": str(self.directory), "SWARMLET_HOST": host}
        done = subprocess.run(
            [*cluster.program(), *words],
            input=stdin,
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout,
            check=False,
        )
        said = f"swarmlet {' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}"
        assert (done.returncode != 0) == fails, said
        assert "Traceback" not in done.stderr, said
        return done.stdout + done.stderr if fails else done.stdout

    def lab(self, *words: str, fails: bool = False) -> str:
        return self.swarmlet("lab", *words, fails=fails)

    def rows(self, *words: str, node: str = "") -> list[dict[str, Any]]:
        """The objects that a listing prints with `--format json`."""
        return [
            json.loads(line) for line in self.swarmlet(*words, "--format", "json", node=node).splitlines()
        ]

    def status(self) -> dict[str, dict[str, Any]]:
        return {node["name"]: node for node in json.loads(self.lab("status", "--format", "json"))["nodes"]}

    def leader(self) -> str:
        self.until(lambda: any(node["leader"] for node in self.status().values()), "a leader")
        return next(name for name, node in self.status().items() if node["leader"])

    def use_live_manager(self) -> None:
        self.host = self.lab("env").strip().removeprefix("export SWARMLET_HOST=")

    def tasks(self, service: str, *, running: bool = True) -> list[dict[str, Any]]:
        """The service's tasks as `service ps` shows them; with `running` those that do and should."""
        rows = self.rows("service", "ps", "--no-trunc", service)
        if not running:
            return rows
        return [
            row
            for row in rows
            if row["DesiredState"] == "Running" and row["CurrentState"].startswith("Running")
        ]

    def replicas(self, service: str) -> str:
        return next(str(row["Replicas"]) for row in self.rows("service", "ls") if row["Name"] == service)

    def create(self, name: str, *words: str, replicas: int = 1) -> None:
        """A service that heals at once and is not watched for long after its start."""
        self.swarmlet(
            *("service", "create", "--name", name, "--replicas", str(replicas)),
            *("--restart-delay", "0s", "--update-monitor", "500ms", "--stop-grace-period", "1s"),
            *(words or SLEEPER),
        )

    def until(self, true: Callable[[], bool], what: str, *, timeout: float = 45.0) -> None:
        """Asks until it is so: what only other processes know announces itself by no event here."""
        deadline = time.monotonic() + timeout
        while not true():
            if time.monotonic() > deadline:
                raise AssertionError(f"after {timeout:.0f} s still not: {what}")
            time.sleep(0.1)


@contextmanager
def running_lab(*options: str, runtime: str = "process") -> Iterator[Commands]:
    """A lab in a short path (unix sockets); nothing of it is left afterwards."""
    parent = Path(tempfile.mkdtemp(prefix="swe2e-", dir="/tmp"))
    commands = Commands(parent / "lab")
    try:
        commands.lab("up", "--runtime", runtime, *options)
        commands.use_live_manager()
        yield commands
    finally:
        if cluster.traces(commands.directory):
            cluster.down(commands.directory)
        left = cluster.traces(commands.directory)
        shutil.rmtree(parent, ignore_errors=True)
    assert left == []


@pytest.fixture(scope="session")
def shared_lab() -> Iterator[Commands]:
    """Three managers for tests that harm nobody but their own services."""
    with running_lab("--managers", "3") as commands:
        yield commands


@pytest.fixture
def calm(shared_lab: Commands) -> Iterator[Commands]:
    """The shared lab, with every service of the test removed at its end."""
    before = set(shared_lab.swarmlet("service", "ls", "-q").split())
    yield shared_lab
    made = set(shared_lab.swarmlet("service", "ls", "-q").split()) - before
    if made:
        shared_lab.swarmlet("service", "rm", *made)


@pytest.fixture
def lab() -> Iterator[Commands]:
    """Three managers for one test, which may do to them what it wants."""
    with running_lab("--managers", "3") as commands:
        yield commands


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory whose path leaves room for unix sockets."""
    parent = Path(tempfile.mkdtemp(prefix="swe2e-", dir="/tmp"))
    yield parent
    shutil.rmtree(parent, ignore_errors=True)


@pytest.fixture
def daemons(short_tmp: Path) -> Iterator[Daemons]:
    """Daemons outside of any lab, on free addresses."""
    started = Daemons(short_tmp)
    yield started
    started.end()


class Daemons:
    """Starts bare `swarmlet daemon`s; ends what is left of them, and their tasks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        plan = layout.plan(directory, managers=3, workers=0, runtime="process")
        self.nodes = {node.name: node for node in plan.nodes}
        self._processes: list[subprocess.Popen[str]] = []
        self._by_name: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, *, state_of: str = "", socket: Path | None = None) -> subprocess.Popen[str]:
        """Starts one, with `state_of` on the state directory of another."""
        node = self.nodes[name]
        node.directory.mkdir(exist_ok=True)
        words = cluster.daemon_command(node, "process")
        if state_of:
            words[words.index("--state-dir") + 1] = str(self.nodes[state_of].state_dir)
        if socket is not None:
            words[words.index("--socket") + 1] = str(socket)
        environment = {
            **os.environ,
            layout.LAB_VARIABLE: str(self.directory),
            layout.NODE_VARIABLE: str(node.directory),
        }
        process = subprocess.Popen(
            words,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        self._by_name[name] = process
        return process

    def ready(self, name: str) -> Commands:
        """Starts one and waits until its socket answers."""
        process = self.start(name)
        commands = Commands(self.directory, host=self.nodes[name].host)
        commands.until(
            lambda: self.nodes[name].socket.exists() or process.poll() is not None, "a daemon that listens"
        )
        assert process.poll() is None, process.communicate()[1]
        return commands

    def kill(self, name: str) -> None:
        """Ends the daemon as a crash would; its tasks run on."""
        self._by_name[name].kill()
        self._by_name[name].wait()

    def end(self) -> None:
        while self._processes:
            process = self._processes.pop()
            process.kill()
            if process.stderr is not None:
                process.stderr.close()
            process.wait()
        cluster.clear(self.directory)
