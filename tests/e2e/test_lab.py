"""The lab's own commands: making a cluster, hurting it, and leaving nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from swarmlet.lab import cluster, cuts, layout, processes
from tests.e2e.conftest import Commands, running_lab


def test_a_lab_that_is_up_has_all_nodes_ready_and_one_leader(shared_lab: Commands) -> None:
    nodes = shared_lab.status()

    assert set(nodes) == {"manager1", "manager2", "manager3"}
    assert {node["state"] for node in nodes.values()} == {"Ready"}
    assert sum(node["leader"] for node in nodes.values()) == 1
    for node in nodes.values():
        rows = shared_lab.rows("node", "ls", node=node["name"])
        assert len(rows) == 3
        assert {row["Status"] for row in rows} == {"Ready"}
        assert sorted(row["ManagerStatus"] for row in rows) == ["Leader", "Reachable", "Reachable"]


def test_status_names_what_a_client_needs(shared_lab: Commands) -> None:
    for node in shared_lab.status().values():
        assert node["host"].startswith("unix:///")
        assert node["address"].startswith("127.")
        assert node["role"] == "manager"
        assert shared_lab.swarmlet("--host", node["host"], "node", "ls", "-q")


def test_exec_points_the_command_line_at_the_node(shared_lab: Commands) -> None:
    said = shared_lab.lab("exec", "manager2", "--", "sh", "-c", "echo $SWARMLET_HOST")

    assert said.strip() == shared_lab.status()["manager2"]["host"]


def test_exec_passes_on_the_exit_status(shared_lab: Commands) -> None:
    done = subprocess.run(
        [
            *cluster.program(),
            "lab",
            "exec",
            "--dir",
            str(shared_lab.directory),
            "manager1",
            "--",
            "sh",
            "-c",
            "exit 7",
        ],
        check=False,
    )

    assert done.returncode == 7


def test_a_second_lab_in_the_same_directory_is_refused(shared_lab: Commands) -> None:
    said = shared_lab.lab("up", fails=True)

    assert "already" in said
    assert len(shared_lab.status()) == 3


def test_an_unknown_node_is_answered_with_the_known_ones(shared_lab: Commands) -> None:
    for command in ("kill", "pause", "start", "logs"):
        assert "manager1, manager2, manager3" in shared_lab.lab(command, "manager9", fails=True)


def test_starting_a_node_that_runs_is_refused(shared_lab: Commands) -> None:
    assert "running already" in shared_lab.lab("start", "manager1", fails=True)


def test_commands_without_a_lab_say_how_to_make_one(short_tmp: Path) -> None:
    nowhere = Commands(short_tmp / "none")

    for command in (("status",), ("env",), ("down",), ("kill", "manager1")):
        assert "lab up" in nowhere.lab(*command, fails=True)


def test_a_lab_in_a_directory_of_somebody_elses_files_is_refused(short_tmp: Path) -> None:
    (short_tmp / "notes.txt").write_text("mine")

    said = Commands(short_tmp).lab("up", fails=True)

    assert "no lab" in said
    assert (short_tmp / "notes.txt").read_text() == "mine"


def test_two_labs_beside_each_other(shared_lab: Commands) -> None:
    with running_lab("--managers", "1", "--workers", "1") as other:
        nodes = other.status()

        assert {name: node["role"] for name, node in nodes.items()} == {
            "manager1": "manager",
            "worker1": "worker",
        }
        assert {node["state"] for node in nodes.values()} == {"Ready"}
        mine = {node["address"] for node in shared_lab.status().values()}
        assert not mine & {node["address"] for node in nodes.values()}
    assert {node["state"] for node in shared_lab.status().values()} == {"Ready"}


@pytest.mark.parametrize("moment", ["written", "started", "initialised"])
def test_down_clears_what_a_killed_up_left(short_tmp: Path, moment: str) -> None:
    commands = Commands(short_tmp / "lab")
    up = subprocess.Popen(
        [*cluster.program(), "lab", "up", "--runtime", "process", "--dir", str(commands.directory)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    marks = {
        "written": lambda: layout.exists(commands.directory),
        "started": lambda: (commands.directory / "manager1" / "swarmlet.sock").exists(),
        "initialised": lambda: (commands.directory / "manager1" / "state" / "node.json").exists(),
    }
    commands.until(marks[moment], moment)
    up.kill()
    up.wait()

    commands.lab("down")

    assert cluster.traces(commands.directory) == []
    assert not commands.directory.exists()


def test_down_works_by_markers_when_the_files_are_gone(short_tmp: Path) -> None:
    commands = Commands(short_tmp / "lab")
    commands.lab("up", "--runtime", "process", "--managers", "1")
    (commands.directory / "lab.json").unlink()

    commands.lab("down")

    assert cluster.traces(commands.directory) == []
    assert not commands.directory.exists()


def test_a_failed_up_says_why_and_leaves_nothing(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands(short_tmp / "lab")
    (short_tmp / "sitecustomize.py").write_text(
        "import os, sys\nif 'daemon' in sys.argv: os.write(2, b'no daemons today\\n'); os._exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(short_tmp))

    said = commands.lab("up", "--runtime", "process", fails=True)

    assert "no daemons today" in said
    assert cluster.traces(commands.directory) == []


def test_a_paused_node_is_down_and_comes_back(lab: Commands) -> None:
    victim = next(name for name in lab.status() if name != lab.leader())

    lab.lab("pause", victim)

    assert lab.status()[victim]["state"] == "paused"
    lab.use_live_manager()
    lab.until(lambda: _node_status(lab, victim) == "Down", "the paused node Down")
    lab.lab("resume", victim)
    lab.until(lambda: _node_status(lab, victim) == "Ready", "the resumed node Ready")
    assert lab.status()[victim]["state"] == "Ready"


@pytest.mark.root
def test_a_cut_node_is_down_and_comes_back(lab: Commands) -> None:
    if os.geteuid() != 0:
        pytest.skip("cutting needs root")
    leader = lab.leader()

    lab.lab("cut", leader)

    assert lab.status()[leader]["state"] == "cut"
    others = [name for name in lab.status() if name != leader]
    lab.host = lab.status()[others[0]]["host"]
    lab.until(lambda: lab.leader() in others, "another leader")
    lab.until(lambda: _node_status(lab, leader) == "Down", "the cut node Down")
    lab.create("after-the-cut")
    lab.lab("heal", leader)
    lab.until(lambda: lab.status()[leader]["state"] == "Ready", "the healed node Ready")
    lab.until(lambda: "after-the-cut" in lab.swarmlet("service", "ls", node=leader), "what it missed")
    assert cuts.cut_nodes(layout.lab_id(lab.directory)) == frozenset()


def test_cutting_without_root_says_that_it_needs_it(shared_lab: Commands) -> None:
    if os.geteuid() == 0:
        pytest.skip("this user can cut")

    assert "root" in shared_lab.lab("cut", "manager1", fails=True)


def test_power_loss_takes_the_tasks_along(lab: Commands) -> None:
    lab.create("lost", replicas=3)
    victim = next(name for name in lab.status() if name != lab.leader())
    node = layout.load(lab.directory).node(victim)
    assert len(processes.marked(node.marker)) >= 2

    lab.lab("kill", victim)

    assert processes.marked(node.marker) == frozenset()
    assert lab.status()[victim]["state"] == "killed"


def test_env_names_a_manager_that_lives(lab: Commands) -> None:
    first = lab.lab("env")
    lab.lab("kill", "manager1")

    then = lab.lab("env")

    assert "manager1" in first
    assert then.startswith("export SWARMLET_HOST=unix:///") and "manager1" not in then


def test_status_works_while_everything_is_dead(lab: Commands) -> None:
    lab.lab("kill", "manager1", "manager2", "manager3")

    assert {node["state"] for node in lab.status().values()} == {"killed"}
    assert "lab start" in lab.lab("env", fails=True)


def _node_status(lab: Commands, name: str) -> str:
    return next(str(row["Status"]) for row in lab.rows("node", "ls") if row["Hostname"] == name)


def test_a_daemon_that_ended_by_itself_shows_as_killed(lab: Commands) -> None:
    node = layout.load(lab.directory).node("manager3")
    (daemon,) = cluster.Lab.load(lab.directory).daemon_pids("manager3")

    os.kill(daemon, signal.SIGTERM)

    lab.until(lambda: lab.status()["manager3"]["state"] == "killed", "the node gone")
    assert not node.socket.exists()
    assert json.loads(lab.lab("status", "--format", "json"))["nodes"][2]["name"] == "manager3"
