from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from swarmlet.api import pb
from swarmlet.runtime import procfs
from swarmlet.runtime.base import Runtime, TaskFailed, TaskRejected
from swarmlet.runtime.process import ProcessRuntime
from swarmlet.runtime.process_task import ProcessController
from tests.unit.runtime.builders import RESOURCES, eventually, make_task, no_progress

Daemon = Callable[[], ProcessRuntime]


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """Makes runtimes on one directory, as a daemon and its successors do; kills every task at the end."""
    runtimes: list[ProcessRuntime] = []

    def start_daemon() -> ProcessRuntime:
        runtime = ProcessRuntime(
            tmp_path / "state", owner=f"test-{tmp_path}", hostname="host1", environment={"MARK": "lab"}
        )
        runtimes.append(runtime)
        return runtime

    yield start_daemon
    last = start_daemon()
    for task_id in await last.leftovers():
        await last.forget(task_id)
    for runtime in runtimes:
        await runtime.close()


async def started(runtime: ProcessRuntime, task: pb.Task) -> ProcessController:
    controller = runtime.controller(task, RESOURCES, no_progress)
    await controller.prepare()
    await controller.start()
    return controller


def pid_of(controller: ProcessController) -> int:
    status = controller.container_status()
    assert status is not None
    return status.pid


def exit_code_of(controller: ProcessController) -> int:
    status = controller.container_status()
    assert status is not None
    return status.exit_code


async def output_of(controller: ProcessController) -> str:
    options = pb.LogOptions(stdout=True, stderr=True, tail=-1)
    return "\n".join([record.data.decode() async for record in controller.logs(options)])


def is_running(pid: int) -> bool:
    return any(record.pid == pid for record in procfs.living_processes())


async def test_it_is_a_runtime_that_describes_its_machine(daemon: Daemon) -> None:
    runtime: Runtime = daemon()

    description = await runtime.describe()

    assert description.hostname == "host1"
    assert description.engine.runtime == "process"
    assert description.platform.os == "linux"
    assert description.resources.nano_cpus >= 10**9


async def test_program_that_ends_well_completes_the_task(daemon: Daemon) -> None:
    controller = await started(daemon(), make_task("t1", "sh", "-c", "echo hello; echo sorry >&2"))

    await controller.wait()

    assert sorted((await output_of(controller)).split()) == ["hello", "sorry"]


async def test_exit_code_fails_the_task_with_dockers_words(daemon: Daemon) -> None:
    controller = await started(daemon(), make_task("t1", "sh", "-c", "exit 3"))

    with pytest.raises(TaskFailed, match=r"^task: non-zero exit \(3\)$") as failure:
        await controller.wait()

    assert failure.value.exit_code == 3
    assert exit_code_of(controller) == 3


async def test_only_what_is_asked_for_in_vain_is_warned_of(daemon: Daemon) -> None:
    plain = make_task("t1", "true")
    plain.spec.container_spec.init = False
    plain.spec.container_spec.dns_config.SetInParent()
    demanding = make_task("t2", "true")
    demanding.spec.container_spec.read_only = True

    with capture_logs() as logs:
        for task in (plain, demanding):
            await (await started(daemon(), task)).wait()

    assert [log["fields"] for log in logs if "without effect" in log["event"]] == [["read_only"]]


async def test_command_and_args_are_one_command_line(daemon: Daemon) -> None:
    task = make_task("t1", "two words", command=["printf", "<%s>"])

    controller = await started(daemon(), task)
    await controller.wait()

    assert await output_of(controller) == "<two words>"


async def test_program_finds_itself_in_its_environment(daemon: Daemon) -> None:
    task = make_task("t1", "env", env=["GREETING=hi {{.Task.Slot}}", "my.prop=x", "MARK=mine"])
    controller = await started(daemon(), task)

    await controller.wait()

    lines = (await output_of(controller)).split("\n")
    for expected in (
        "GREETING=hi 1", "my.prop=x", "MARK=mine", "SWARMLET_TASK_ID=t1", "SWARMLET_TASK_NAME=web.1.t1",
        "SWARMLET_SERVICE_NAME=web", "SWARMLET_NODE_ID=node1", "SWARMLET_NODE_HOSTNAME=host1",
    ):  # fmt: skip
        assert expected in lines
    assert any(line.startswith("SWARMLET_TASK_ADDRESS=127.") for line in lines)


async def test_the_lab_marks_every_program(daemon: Daemon) -> None:
    controller = await started(daemon(), make_task("t1", "sh", "-c", "echo $MARK"))

    await controller.wait()

    assert await output_of(controller) == "lab"


async def test_ports_are_dialled_at_the_tasks_own_address(daemon: Daemon) -> None:
    code = "import socket,sys,time; s=socket.create_server((sys.argv[1], 8080)); time.sleep(600)"
    task = make_task("t1", sys.executable, "-c", code, "{{.Task.Address}}")
    task.endpoint.ports.add(target_port=8080, published_port=80)
    controller = await started(daemon(), task)

    [endpoint] = controller.endpoint_addresses()

    async def dials() -> bool:
        try:
            _, writer = await asyncio.open_connection(endpoint.address, endpoint.port)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True

    await eventually(dials)
    assert endpoint.target_port == 8080
    assert endpoint.address != "127.0.0.1"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (make_task("t1"), "the process runtime needs a command"),
        (make_task("t1", "no-such-program"), r'exec: "no-such-program": executable file not found in \$PATH'),
        (make_task("t1", "/no/such"), 'exec: "/no/such": stat /no/such: no such file or directory'),
        (make_task("t1", "/etc/passwd"), 'exec: "/etc/passwd": permission denied'),
        (make_task("t1", "env", env=["A={{.Nothing}}"]), "can't evaluate field Nothing"),
        (make_task("t1", "env", stop_signal="SIGNOTHING"), "Invalid signal: SIGNOTHING"),
        (make_task("t1", "env", dir="/no/such"), "working directory /no/such does not exist on node host1"),
        (make_task("t1", "env", user="nobody-at-all"), "unable to find user nobody-at-all"),
        (
            make_task("t1", "env", mounts=[pb.Mount(source="/a", target="/b")]),
            "cannot mount bind /a at /b",
        ),
        (
            make_task("t1", "env", secrets=[pb.SecretReference(secret_id="s", secret_name="pw")]),
            "secret pw was not given to this node",
        ),
    ],
)
async def test_what_can_never_run_is_rejected_with_the_reason(
    daemon: Daemon, task: pb.Task, words: str
) -> None:
    controller = daemon().controller(task, RESOURCES, no_progress)

    with pytest.raises(TaskRejected, match=words):
        await controller.prepare()


async def test_shutdown_sends_the_stop_signal_and_waits(daemon: Daemon) -> None:
    script = "trap 'echo bye; exit 0' USR1; echo ready; while :; do sleep 0.01; done"
    controller = await started(daemon(), make_task("t1", "sh", "-c", script, stop_signal="USR1"))
    await eventually_prints(controller, "ready")

    await controller.shutdown()

    assert exit_code_of(controller) == 0
    assert await output_of(controller) == "ready\nbye"


async def eventually_prints(controller: ProcessController, text: str) -> None:
    async def printed() -> bool:
        return text in await output_of(controller)

    await eventually(printed)


async def test_program_that_ignores_the_stop_signal_is_killed_with_all_its_children(daemon: Daemon) -> None:
    script = "trap '' TERM; sleep 611 & echo child $!; while :; do sleep 0.05; done"
    task = make_task("t1", "sh", "-c", script, stop_grace_period_ns=50_000_000)
    controller = await started(daemon(), task)
    await eventually_prints(controller, "child")
    pids = [pid_of(controller), int((await output_of(controller)).split()[1])]

    await controller.shutdown()

    assert exit_code_of(controller) == 137
    assert [is_running(pid) for pid in pids] == [False, False]


async def test_background_children_do_not_outlive_the_program(daemon: Daemon) -> None:
    controller = await started(daemon(), make_task("t1", "sh", "-c", "sleep 611 & echo $!"))

    await controller.wait()

    assert not is_running(int(await output_of(controller)))


async def test_program_killed_by_somebody_else_fails_the_task(daemon: Daemon) -> None:
    controller = await started(daemon(), make_task("t1", "sleep", "611"))

    os.kill(pid_of(controller), signal.SIGKILL)

    with pytest.raises(TaskFailed, match=r"task: non-zero exit \(137\)"):
        await controller.wait()


async def test_killed_supervisor_takes_its_program_along(daemon: Daemon) -> None:
    controller = await started(daemon(), make_task("t1", "sleep", "611"))
    pid = pid_of(controller)
    record = procfs.read_record(pid)
    assert record is not None

    os.kill(record.session, signal.SIGKILL)

    with pytest.raises(TaskFailed, match=r"task: non-zero exit \(137\)"):
        await controller.wait()
    assert not is_running(pid)


async def test_successor_of_a_daemon_adopts_its_running_task(daemon: Daemon) -> None:
    task = make_task("t1", "sleep", "611")
    first = daemon()
    before = await started(first, task)
    pid = pid_of(before)
    await first.close()

    adopted = await started(daemon(), task)

    assert pid_of(adopted) == pid
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(TaskFailed, match=r"task: non-zero exit \(143\)"):
        await adopted.wait()


async def test_successor_learns_the_exit_code_of_a_task_that_ended_meanwhile(
    daemon: Daemon, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    task = make_task("t1", "sh", "-c", f"until [ -e {go} ]; do sleep 0.01; done; exit 7")
    first = daemon()
    await started(first, task)
    await first.close()
    go.touch()

    async def ended() -> bool:
        return (tmp_path / "state/tasks/t1/exit").exists()

    await eventually(ended)

    adopted = await started(daemon(), task)

    with pytest.raises(TaskFailed, match=r"task: non-zero exit \(7\)"):
        await adopted.wait()


async def test_task_of_an_earlier_boot_is_not_looked_for_among_todays_processes(
    daemon: Daemon, tmp_path: Path
) -> None:
    task = make_task("t1", "sleep", "611")
    first = daemon()
    pid = pid_of(await started(first, task))
    await first.close()
    record = tmp_path / "state/tasks/t1/task.json"
    record.write_text(record.read_text().replace(procfs.boot_id(), "another-boot"))

    adopted = await started(daemon(), task)

    with pytest.raises(TaskFailed, match=r"task: non-zero exit \(137\)"):
        await adopted.wait()
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)


async def test_reused_pid_is_never_signalled() -> None:
    mine = procfs.read_record(os.getpid())
    assert mine is not None
    another = procfs.ProcessRecord(pid=mine.pid, start_ticks=mine.start_ticks - 1, session=mine.session)

    assert not procfs.send_signal(another, signal.SIGKILL)


async def test_remove_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    runtime = daemon()
    controller = await started(runtime, make_task("t1", "sleep", "611"))
    pid = pid_of(controller)

    await controller.remove()

    assert not is_running(pid)
    assert await runtime.leftovers() == []
    assert list((tmp_path / "state/addresses").iterdir()) == []
    assert controller.container_status() is None


async def test_leftovers_of_a_predecessor_are_named_and_removed(daemon: Daemon) -> None:
    first = daemon()
    pids = [pid_of(await started(first, make_task(f"t{n}", "sleep", "611"))) for n in (1, 2)]
    await first.close()
    second = daemon()

    assert await second.leftovers() == ["t1", "t2"]
    await second.remove_leftover("t1")

    assert await second.leftovers() == ["t2"]
    assert [is_running(pid) for pid in pids] == [False, True]


async def test_sixty_tasks_start_at_once(daemon: Daemon) -> None:
    runtime = daemon()
    tasks = [make_task(f"t{n}", "sleep", "611", slot=n) for n in range(60)]

    controllers = await asyncio.gather(*(started(runtime, task) for task in tasks))

    assert len({pid_of(controller) for controller in controllers}) == 60
    await asyncio.gather(*(controller.terminate() for controller in controllers))
    assert {exit_code_of(controller) for controller in controllers} == {137}


async def test_start_that_is_given_up_midway_can_still_be_stopped(daemon: Daemon) -> None:
    runtime = daemon()
    controller = runtime.controller(make_task("t1", "sleep", "611"), RESOURCES, no_progress)
    await controller.prepare()
    starting = asyncio.create_task(controller.start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)

    await controller.shutdown()

    with pytest.raises(TaskFailed):
        await controller.start()
        await controller.wait()
    assert pid_of(controller) == 0


async def test_secrets_and_configs_are_files_in_memory(daemon: Daemon) -> None:
    task = make_task(
        "t1", "sh", "-c", "cat $SWARMLET_SECRETS_DIR/pw $SWARMLET_CONFIGS_DIR/etc/app.conf; sleep 600"
    )
    container = task.spec.container_spec
    container.secrets.add(secret_id="s1", secret_name="pw", file=pb.FileTarget(name="pw", mode=0o400))
    container.configs.add(config_id="c1", config_name="conf", file=pb.FileTarget(name="/etc/app.conf"))
    resources = RESOURCES.__class__(
        secrets={"s1": pb.Secret(spec=pb.SecretSpec(data=b"hush\n"))},
        configs={"c1": pb.Config(spec=pb.ConfigSpec(data=b"key=value\n"))},
        node_id="node1",
        node_hostname="host1",
    )
    runtime = daemon()
    controller = runtime.controller(task, resources, no_progress)

    await controller.prepare()
    await controller.start()
    await eventually_prints(controller, "key=value")

    assert "hush" in await output_of(controller)
    await controller.remove()
    assert not list(Path("/dev/shm").glob("swarmlet-*/t1"))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
async def test_program_runs_as_the_user_it_asks_for(daemon: Daemon) -> None:
    controller = await started(daemon(), make_task("t1", "id", user="nobody:daemon"))

    await controller.wait()

    assert (await output_of(controller)).startswith("uid=65534(nobody) gid=1(daemon)")


@pytest.mark.skipif(os.getuid() == 0, reason="root may become anybody")
async def test_without_root_another_user_is_rejected(daemon: Daemon) -> None:
    controller = daemon().controller(make_task("t1", "id", user="root"), RESOURCES, no_progress)

    with pytest.raises(TaskRejected, match="runs without root"):
        await controller.prepare()


async def test_ulimits_are_the_programs(daemon: Daemon) -> None:
    task = make_task("t1", "sh", "-c", "ulimit -n", ulimits=[pb.Ulimit(name="nofile", soft=77, hard=99)])
    controller = await started(daemon(), task)

    await controller.wait()

    assert await output_of(controller) == "77"


def health_check(test: str, **settings: int) -> pb.HealthConfig:
    return pb.HealthConfig(test=["CMD-SHELL", test], interval_ns=20_000_000, **settings)


async def test_start_returns_once_the_task_is_healthy(daemon: Daemon) -> None:
    task = make_task(
        "t1",
        "sh",
        "-c",
        "sleep 0.2; touch ok; sleep 600",
        healthcheck=health_check("[ -e ok ]", retries=1000),
    )

    controller = await started(daemon(), task)

    assert (daemon().directory_of("t1") / "work" / "ok").exists()
    assert pid_of(controller) > 0


async def test_task_that_never_becomes_healthy_fails_to_start(daemon: Daemon) -> None:
    controller = daemon().controller(
        make_task("t1", "sleep", "600", healthcheck=health_check("false", retries=2)), RESOURCES, no_progress
    )
    await controller.prepare()

    with pytest.raises(TaskFailed, match="task: unhealthy"):
        await controller.start()

    assert pid_of(controller) == 0


async def test_running_task_that_turns_unhealthy_is_stopped_and_fails(daemon: Daemon) -> None:
    runtime = daemon()
    controller = await started(
        runtime, make_task("t1", "sleep", "600", healthcheck=health_check("[ ! -e bad ]", retries=2))
    )

    (runtime.directory_of("t1") / "work" / "bad").touch()

    with pytest.raises(TaskFailed, match="task: unhealthy"):
        await controller.wait()
    assert pid_of(controller) == 0


async def test_adopted_task_that_was_healthy_is_at_once_running_again(daemon: Daemon) -> None:
    check = pb.HealthConfig(test=["CMD", "true"], interval_ns=50_000_000)
    first = daemon()
    await started(first, make_task("t1", "sleep", "600", healthcheck=check))
    await first.close()
    check.interval_ns = 600_000_000_000

    async with asyncio.timeout(30):
        adopted = await started(daemon(), make_task("t1", "sleep", "600", healthcheck=check))

    assert pid_of(adopted) > 0
