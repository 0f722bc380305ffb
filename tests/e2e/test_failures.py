"""What survives when nodes lose power, daemons die, and leaders change."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from swarmlet.lab import processes
from swarmlet.lab.cluster import Lab
from tests.e2e.conftest import Commands


def test_writes_go_on_after_the_leader_lost_power(lab: Commands) -> None:
    lab.create("before")
    leader = lab.leader()

    lab.lab("kill", leader)
    lab.use_live_manager()
    lab.create("after")

    assert lab.leader() != leader
    lab.lab("start", leader)
    for name in lab.status():
        lab.until(
            lambda name=name: (
                {"before", "after"}  # type: ignore[misc]
                <= set(lab.swarmlet("service", "ls", "--format", "{{.Name}}", node=name).split())
            ),
            f"both services on {name}",
        )


def test_tasks_of_a_dead_node_run_elsewhere_and_are_not_run_twice_when_it_returns(lab: Commands) -> None:
    lab.create("moved", replicas=3)
    victim = next(name for name in lab.status() if name != lab.leader())
    lab.use_live_manager()

    lab.lab("kill", victim)
    lab.use_live_manager()

    lab.until(lambda: len(lab.tasks("moved")) == 3 and victim not in _nodes(lab, "moved"), "all elsewhere")
    lab.lab("start", victim)
    lab.until(lambda: lab.status()[victim]["state"] == "Ready", "the node back")
    assert len(lab.tasks("moved")) == 3
    assert victim not in _nodes(lab, "moved")


def test_a_killed_daemon_adopts_its_tasks_when_it_is_started_again(lab: Commands) -> None:
    # However busy the machine: nobody may give the node up while its daemon is away.
    lab.swarmlet("swarm", "update", "--dispatcher-heartbeat", "10s")
    lab.create("kept", replicas=3)
    here = Lab.load(lab.directory)
    victim = next(name for name in lab.status() if name != lab.leader())
    daemons = here.daemon_pids(victim)
    sleepers = _sleepers(here, victim)
    tasks = {task["ID"] for task in lab.tasks("kept")}
    assert len(sleepers) == 1

    for pid in daemons:
        os.kill(pid, signal.SIGKILL)
    lab.until(lambda: not here.daemon_pids(victim), "the daemon dead")
    lab.lab("start", victim)

    lab.until(lambda: lab.status()[victim]["state"] == "Ready", "the node back")
    assert _sleepers(here, victim) == sleepers
    lab.until(lambda: {task["ID"] for task in lab.tasks("kept")} == tasks, "the same tasks running")


def test_without_a_majority_nothing_is_acknowledged_and_tasks_run_on(lab: Commands) -> None:
    lab.create("lasting", replicas=3)
    here = Lab.load(lab.directory)
    lab.lab("kill", "manager2", "manager3")
    survivor = _sleepers(here, "manager1")

    said = lab.swarmlet(
        "--timeout", "3s", "service", "create", "-d", "x", "true", node="manager1", fails=True
    )

    assert said.strip()
    assert survivor and _sleepers(here, "manager1") == survivor
    lab.lab("start", "manager2")
    lab.until(lambda: any(node["leader"] for node in lab.status().values()), "a leader again")
    lab.host = lab.status()["manager2"]["host"]
    lab.create("afterwards")


def _nodes(lab: Commands, service: str) -> set[str]:
    return {task["Node"] for task in lab.tasks(service)}


def _sleepers(here: Lab, name: str) -> frozenset[int]:
    """Pids of the node's task processes: they run the `sleep` of the test."""
    found = set()
    for pid in here.pids(name) - here.daemon_pids(name):
        if (
            processes.state(pid)
            and b"sleep" in Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")[0]
        ):
            found.add(pid)
    return frozenset(found)
