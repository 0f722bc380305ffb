"""What the process runtime takes from the host for a task: addresses, files in memory, control groups."""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path, PurePosixPath

import pytest

from swarmlet.api import pb
from swarmlet.runtime.base import TaskFailed, TaskRejected, TaskResources
from swarmlet.runtime.cgroups import ControlGroups
from swarmlet.runtime.loopback import LoopbackAddresses
from swarmlet.runtime.task_files import TaskFiles
from tests.unit.runtime.builders import make_task

RESOURCES = TaskResources(
    secrets={"s1": pb.Secret(spec=pb.SecretSpec(data=b"hush"))},
    configs={"c1": pb.Config(spec=pb.ConfigSpec(data=b"conf"))},
)


def task_with_files(secret_target: str = "pw") -> pb.Task:
    task = make_task("t1")
    spec = task.spec.container_spec
    spec.secrets.add(secret_id="s1", secret_name="pw", file=pb.FileTarget(name=secret_target, mode=0o400))
    spec.configs.add(config_id="c1", config_name="app.conf")
    return task


def test_every_task_has_an_address_of_its_own_in_the_range(tmp_path: Path) -> None:
    addresses = LoopbackAddresses(tmp_path, "node1", "127.80.0.0/28")

    claimed = [addresses.claim(f"t{n}") for n in range(14)]

    assert len(set(claimed)) == 14
    assert all(ipaddress.ip_address(a) in ipaddress.ip_network("127.80.0.0/28") for a in claimed)
    with pytest.raises(TaskFailed, match="no free loopback address"):
        addresses.claim("one too many")


def test_address_of_a_task_is_the_same_after_a_restart_and_free_after_release(tmp_path: Path) -> None:
    address = LoopbackAddresses(tmp_path, "node1").claim("t1")

    successor = LoopbackAddresses(tmp_path, "node1")
    assert successor.claim("t1") == address
    successor.release_task("t1")

    assert list(tmp_path.iterdir()) == []


def test_range_that_is_not_loopback_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a loopback range"):
        LoopbackAddresses(tmp_path, "node1", "10.0.0.0/8")


def test_files_have_their_targets_data_and_modes(tmp_path: Path) -> None:
    files = TaskFiles("node1", tmp_path).create(task_with_files(), RESOURCES)

    assert [(f.target, f.path.read_bytes(), stat.S_IMODE(f.path.stat().st_mode)) for f in files] == [
        (PurePosixPath("/run/secrets/pw"), b"hush", 0o400),
        (PurePosixPath("/app.conf"), b"conf", 0o444),
    ]


def test_files_are_gone_with_the_task(tmp_path: Path) -> None:
    files = TaskFiles("node1", tmp_path)
    files.create(task_with_files(), RESOURCES)
    assert files.directory_of("t1") is not None

    files.remove("t1")
    files.remove("t1")

    assert list(tmp_path.iterdir()) == []


def test_target_that_leaves_its_directory_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(TaskRejected, match=r"must not contain '\.\.'"):
        TaskFiles("node1", tmp_path).create(task_with_files("../../etc/passwd"), RESOURCES, relative=True)


@pytest.mark.skipif(
    os.getuid() != 0 or not Path("/sys/fs/cgroup").is_dir(), reason="needs root and control groups"
)
def test_limits_are_set_and_groups_removed() -> None:
    groups = ControlGroups("unit-test")
    paths = groups.create("t1", pb.Resources(nano_cpus=500_000_000, memory_bytes=64 << 20, pids=10))
    if not paths:
        pytest.skip("control groups cannot be made here")

    written = {file.name: file.read_text().strip() for path in paths for file in path.glob("*.max")}
    groups.remove("t1")

    assert written.get("pids.max") == "10"
    assert not any(path.exists() for path in paths)


def test_without_the_right_to_make_groups_nothing_is_limited(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert (
        ControlGroups("unit-test", tmp_path / "file").create("t1", pb.Resources(memory_bytes=1 << 20)) == []
    )


def test_no_limit_needs_no_group(tmp_path: Path) -> None:
    assert ControlGroups("unit-test", tmp_path).create("t1", pb.Resources()) == []
    assert list(tmp_path.iterdir()) == []
