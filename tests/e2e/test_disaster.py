"""The way back when a majority is lost for good, when everything is lost, and when a disk lies."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swarmlet.lab import layout, processes
from swarmlet.lab.cluster import Lab
from tests.e2e.conftest import Commands, Daemons


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "passphrase"
    path.write_text("correct horse\n")
    yield path


def test_one_surviving_manager_goes_on_with_everything(lab: Commands) -> None:
    lab.use_live_manager()
    lab.create("lasting", replicas=3)
    tokens = _tokens(lab, "manager1")
    trusted = _root(lab, "manager1")
    here = Lab.load(lab.directory)
    lab.lab("kill", "manager2", "manager3")
    before = _sleepers(here, "manager1")
    assert before

    said = lab.swarmlet("swarm", "init", "--force-new-cluster", node="manager1")

    assert "is now a manager" in said
    lab.host = lab.status()["manager1"]["host"]
    assert before <= _sleepers(here, "manager1")
    assert _tokens(lab, "manager1") == tokens
    assert _root(lab, "manager1") == trusted
    assert [row["ManagerStatus"] for row in lab.rows("node", "ls") if row["ManagerStatus"]] == ["Leader"]
    lab.until(lambda: len(lab.tasks("lasting")) == 3, "all replicas on the survivor", timeout=60)
    assert before <= _sleepers(here, "manager1")
    lab.create("written-alone")


def test_old_managers_that_come_back_are_workers_of_the_new_cluster(lab: Commands) -> None:
    lab.use_live_manager()
    lab.create("lasting", replicas=1)
    lab.lab("kill", "manager2", "manager3")
    lab.swarmlet("swarm", "init", "--force-new-cluster", node="manager1")
    lab.host = lab.status()["manager1"]["host"]
    lab.create("written-alone")
    # The two of them are a majority of the old group and may agree on something while this one is away.
    lab.lab("kill", "manager1")
    lab.lab("start", "manager2")
    lab.lab("start", "manager3")
    old = layout.load(lab.directory).node("manager2").host
    lab.until(lambda: _has_leader(lab, old), "a leader of the old group")
    lab.swarmlet("service", "create", "-d", "--name", "of-the-past", "none", "sleep", "3600", node="manager2")

    lab.lab("start", "manager1")

    for name in ("manager2", "manager3"):
        lab.until(lambda name=name: not _is_manager(lab, name), f"{name} a worker")  # type: ignore[misc]
        lab.until(lambda name=name: lab.status()[name]["state"] == "Ready", f"{name} ready")  # type: ignore[misc]
    assert lab.leader() == "manager1"
    services = lab.swarmlet("service", "ls", "--format", "{{.Name}}", node="manager1").split()
    assert sorted(services) == ["lasting", "written-alone"]
    # What the old group knew is kept aside, for whoever wants it.
    assert (lab.directory / "manager2" / "state" / "raft.before" / "journal").exists()
    lab.swarmlet("node", "promote", "manager2", node="manager1")
    lab.until(lambda: _is_manager(lab, "manager2"), "manager2 a manager again")
    lab.until(
        lambda: "written-alone" in lab.swarmlet("service", "ls", node="manager2"), "the state on manager2"
    )


def test_a_new_manager_joins_the_cluster_of_one(daemons: Daemons) -> None:
    first = daemons.ready("manager1")
    first.swarmlet("swarm", "init")
    second, third = daemons.ready("manager2"), daemons.ready("manager3")
    address = daemons.nodes["manager1"].cluster_address
    token = first.swarmlet("swarm", "join-token", "-q", "manager").strip()
    second.swarmlet("swarm", "join", "--token", token, address)
    daemons.kill("manager2")

    first.swarmlet("swarm", "init", "--force-new-cluster")
    third.swarmlet("swarm", "join", "--token", token, address)

    first.until(
        lambda: (
            sorted(row["ManagerStatus"] for row in first.rows("node", "ls")) == ["", "Leader", "Reachable"]
        ),
        "two managers and the one that is gone",
    )
    first.create("agreed")
    first.until(lambda: "agreed" in third.swarmlet("service", "ls"), "it on the new manager")


def test_force_new_cluster_is_for_managers_of_a_swarm(daemons: Daemons) -> None:
    outside = daemons.ready("manager1")

    said = outside.swarmlet("swarm", "init", "--force-new-cluster", fails=True)

    assert "not a swarm manager" in said or "not part of" in said


def test_a_backup_taken_under_load_brings_everything_back(
    lab: Commands, daemons: Daemons, secret: Path, tmp_path: Path
) -> None:
    lab.use_live_manager()
    lab.create("lasting", replicas=3)
    tokens, trusted = _tokens(lab, "manager1"), _root(lab, "manager1")
    file = tmp_path / "swarm.backup"
    with _writing(lab) as written:
        # From a manager that does not lead: it has to catch up with what is acknowledged.
        follower = next(name for name in lab.status() if name != lab.leader())
        lab.until(lambda: len(written) >= 3, "some writes")
        acknowledged = list(written)
        lab.swarmlet("system", "backup", "--passphrase-file", str(secret), str(file), node=follower)
    assert file.stat().st_mode & 0o777 == 0o600
    lab.lab("down")

    fresh = daemons.ready("manager1")
    fresh.swarmlet("system", "restore", "--passphrase-file", str(secret), str(file))

    assert {"lasting", *acknowledged} <= set(fresh.swarmlet("service", "ls", "--format", "{{.Name}}").split())
    assert fresh.swarmlet("swarm", "join-token", "-q", "worker").strip() == tokens[0]
    assert fresh.swarmlet("swarm", "join-token", "-q", "manager").strip() == tokens[1]
    assert fresh.swarmlet("node", "inspect", "self", "--format", "{{json .Description.TLSInfo}}") == trusted
    fresh.until(
        lambda: sorted(row["Status"] for row in fresh.rows("node", "ls")) == ["Down"] * 3 + ["Ready"],
        "the former nodes down",
    )
    fresh.until(lambda: len(fresh.tasks("lasting")) == 3, "its tasks here", timeout=60)


def test_a_backup_that_is_damaged_or_not_ours_leaves_the_node_as_it_was(
    daemons: Daemons, secret: Path, tmp_path: Path
) -> None:
    node = daemons.ready("manager1")
    node.swarmlet("swarm", "init")
    file, damaged, wrong = tmp_path / "backup", tmp_path / "damaged", tmp_path / "wrong"
    assert "--insecure" in node.swarmlet("system", "backup", str(file), fails=True)
    node.swarmlet("system", "backup", "--passphrase-file", str(secret), str(file))
    assert "--force" in node.swarmlet("system", "backup", "--insecure", str(file), fails=True)
    node.swarmlet("swarm", "leave", "--force")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    wrong.write_text("battery staple")

    said = node.swarmlet("system", "restore", "--passphrase-file", str(secret), str(damaged), fails=True)
    assert "checksum" in said
    said = node.swarmlet("system", "restore", "--passphrase-file", str(wrong), str(file), fails=True)
    assert "wrong passphrase" in said
    assert "Swarm: inactive" in node.swarmlet("system", "info")
    assert [path.name for path in daemons.nodes["manager1"].state_dir.iterdir()] == ["lock"]
    node.swarmlet("system", "restore", "--passphrase-file", str(secret), str(file))
    said = node.swarmlet("system", "restore", "--passphrase-file", str(secret), str(file), fails=True)
    assert "already part of a swarm" in said


def test_check_finds_a_flipped_bit_and_repairs_nothing(daemons: Daemons, tmp_path: Path) -> None:
    node = daemons.ready("manager1")
    node.swarmlet("swarm", "init")
    node.create("lasting")
    state = daemons.nodes["manager1"].state_dir
    assert "stop it first" in node.swarmlet("system", "check", "--state-dir", str(state), fails=True)
    daemons.kill("manager1")
    assert "error" not in node.swarmlet("system", "check", "--state-dir", str(state))
    shutil.copytree(state, tmp_path / "copy")
    journal = tmp_path / "copy" / "raft" / "journal"
    content = bytearray(journal.read_bytes())
    content[len(content) // 3] ^= 0x10
    journal.write_bytes(content)

    said = node.swarmlet("system", "check", "--state-dir", str(tmp_path / "copy"), fails=True)

    assert "error: journal" in said
    assert journal.read_bytes() == content


def _tokens(lab: Commands, node: str) -> list[str]:
    return [
        lab.swarmlet("swarm", "join-token", "-q", role, node=node).strip() for role in ("worker", "manager")
    ]


def _root(lab: Commands, node: str) -> str:
    return lab.swarmlet("node", "inspect", "self", "--format", "{{json .Description.TLSInfo}}", node=node)


def _is_manager(lab: Commands, name: str) -> bool:
    info = json.loads(lab.swarmlet("system", "info", "--format", "json", node=name))
    return bool(info["Swarm"]["ControlAvailable"])


def _has_leader(lab: Commands, host: str) -> bool:
    info = json.loads(lab.swarmlet("--host", host, "system", "info", "--format", "json"))
    return bool(info["Swarm"]["Leader"])


@contextmanager
def _writing(lab: Commands) -> Iterator[list[str]]:
    """Somebody creates services all the time; the names of those that were acknowledged."""
    written: list[str] = []
    is_over = threading.Event()

    def write() -> None:
        while not is_over.is_set():
            name = f"load{len(written)}"
            lab.swarmlet("service", "create", "-d", "--replicas", "0", "--name", name, "none", "true")
            written.append(name)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        is_over.set()
        writer.join()


def _sleepers(here: Lab, name: str) -> frozenset[int]:
    """Pids of the node's task processes: they run the `sleep` of the test."""
    found = set()
    for pid in here.pids(name) - here.daemon_pids(name):
        if processes.state(pid):
            words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
            if b"sleep" in words[0]:
                found.add(pid)
    return frozenset(found)
