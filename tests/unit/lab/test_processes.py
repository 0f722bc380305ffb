"""Finding, freezing and ending real processes by their marker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmlet.lab import cluster, processes
from swarmlet.lab import layout as layouts

FORKER = (
    "import os, time\n"
    "while True:\n"
    "    if os.fork() == 0:\n"
    "        os.setsid()\n"
    "        time.sleep(60)\n"
    "    time.sleep(0.005)\n"
)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[bytes]:
    """A marker of this test alone; whatever has it at the end is killed."""
    mark = f"{layouts.NODE_VARIABLE}={tmp_path}".encode()
    yield mark
    processes.kill_all(lambda: processes.marked(mark))


def start(marker: bytes, *command: str) -> subprocess.Popen[bytes]:
    name, _, value = marker.decode().partition("=")
    return subprocess.Popen(command, env={**os.environ, name: value}, start_new_session=True)


def test_processes_are_found_by_the_whole_marker_only(marker: bytes) -> None:
    ours = start(marker, "sleep", "60")
    other = start(marker + b"0", "sleep", "60")

    try:
        assert processes.marked(marker) == {ours.pid}
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def test_children_in_other_sessions_are_found_too(marker: bytes) -> None:
    parent = start(marker, "sh", "-c", "setsid sleep 60 & wait")

    found = wait_for_count(marker, 2)

    assert parent.pid in found


def test_a_process_that_forks_all_the_time_is_killed_with_its_children(marker: bytes) -> None:
    parent = start(marker, sys.executable, "-c", FORKER)
    wait_for_count(marker, 5)

    processes.kill_all(lambda: processes.marked(marker))

    assert processes.marked(marker) == frozenset()
    assert parent.wait() == -signal.SIGKILL


def test_stopped_processes_stay_stopped_until_continued(marker: bytes) -> None:
    process = start(marker, "sleep", "60")

    processes.stop_all(lambda: processes.marked(marker))

    assert processes.is_stopped(process.pid)
    processes.send([process.pid], signal.SIGCONT)
    while processes.is_stopped(process.pid):
        pass
    assert processes.state(process.pid) in ("S", "R")


def test_a_process_that_has_ended_has_no_state() -> None:
    process = subprocess.Popen(["true"])
    process.wait()

    assert processes.state(process.pid) == ""


async def test_the_end_of_a_daemon_is_noticed_with_its_status(tmp_path: Path) -> None:
    process = processes.spawn(
        ["sh", "-c", "echo broken >&2; exit 3"], log=tmp_path / "log", environment=os.environ, group=None
    )

    status = await asyncio.wait_for(processes.ended(process), 10)

    assert status == 3
    assert cluster.log_tail(tmp_path / "log", 5) == ["broken"]


def test_what_a_killed_up_left_is_cleared_by_its_marker_alone(tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    (directory / "manager1").mkdir(parents=True)
    (directory / "manager1" / "daemon.log").touch()
    orphan = start(layouts.lab_marker(directory), "sleep", "60")

    cluster.down(directory)

    assert orphan.wait() == -signal.SIGKILL
    assert not directory.exists()


def test_clearing_spares_the_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "manager1").mkdir()
    (tmp_path / "manager1" / "daemon.log").touch()
    (tmp_path / "notes.txt").write_text("mine")

    cluster.clear(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def wait_for_count(marker: bytes, count: int) -> frozenset[int]:
    """The suite's time limit ends this, should it never come true."""
    while len(found := processes.marked(marker)) < count:
        pass
    return found
