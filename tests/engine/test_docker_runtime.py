from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable

import docker
import pytest

from swarmlet.api import pb
from swarmlet.runtime.base import LogRecord, Runtime, TaskFailed, TaskRejected, TaskResources
from swarmlet.runtime.docker import DockerRuntime, engine_answers
from swarmlet.runtime.docker_task import DockerController
from tests.engine.engine import IMAGE, PrivateEngine
from tests.unit.runtime.builders import RESOURCES, eventually, no_progress
from tests.unit.runtime.builders import make_task as make_plain_task

pytestmark = pytest.mark.engine

Daemon = Callable[[], DockerRuntime]


@pytest.fixture
def client(engine_url: str) -> docker.APIClient:
    return docker.APIClient(base_url=engine_url, version="auto")


@pytest.fixture
async def daemon(engine_url: str) -> AsyncIterator[Daemon]:
    """Makes runtimes of one owner, as a daemon and its successors do; removes every container at the end."""
    owner = f"test{uuid.uuid4().hex[:12]}"
    runtimes: list[DockerRuntime] = []

    def start_daemon() -> DockerRuntime:
        runtimes.append(DockerRuntime(engine_url, owner=owner, hostname="host1"))
        return runtimes[-1]

    yield start_daemon
    last = start_daemon()
    await last.ready()
    for task_id in await last.leftovers():
        await last.remove(task_id)
    for runtime in runtimes:
        await runtime.close()


def make_task(*command: str, image: str = IMAGE, **container: object) -> pb.Task:
    task = make_plain_task(f"t{uuid.uuid4().hex[:12]}", *command, slot=1, **container)
    task.spec.container_spec.image = image
    return task


async def prepared(runtime: DockerRuntime, task: pb.Task) -> DockerController:
    controller = runtime.controller(task, RESOURCES, no_progress)
    await controller.prepare()
    return controller


async def started(runtime: DockerRuntime, task: pb.Task) -> DockerController:
    controller = await prepared(runtime, task)
    await controller.start()
    return controller


def status_of(controller: DockerController) -> pb.ContainerStatus:
    status = controller.container_status()
    assert status is not None
    return status


async def lines_of(controller: DockerController, **options: object) -> list[LogRecord]:
    asked = pb.LogOptions(**{"stdout": True, "stderr": True, "tail": -1, **options})  # type: ignore[arg-type]
    return [record async for record in controller.logs(asked)]


async def output_of(controller: DockerController) -> str:
    return "\n".join(record.data.decode() for record in await lines_of(controller))


async def test_engine_describes_the_node(daemon: Daemon) -> None:
    runtime: Runtime = daemon()

    description = await runtime.describe()

    assert description.hostname == "host1"
    assert description.engine.runtime == "docker"
    assert description.engine.engine_version
    assert description.resources.memory_bytes > 0
    assert any(plugin.type == "Network" for plugin in description.engine.plugins)


async def test_engine_that_is_not_there_is_told_in_dockers_words() -> None:
    runtime = DockerRuntime("unix:///nowhere/docker.sock", owner="o", hostname="h")

    assert await engine_answers("unix:///nowhere/docker.sock") is not None
    with pytest.raises(
        TaskFailed, match=r"Cannot connect to the Docker daemon at unix:///nowhere/docker.sock"
    ):
        await prepared(runtime, make_task("true"))

    await runtime.close()


async def test_task_runs_and_completes(daemon: Daemon, engine_url: str) -> None:
    assert await engine_answers(engine_url) is None
    controller = await started(daemon(), make_task("sh", "-c", "echo out; echo err >&2"))

    await controller.wait()

    records = await lines_of(controller)
    assert sorted((r.data, r.stream) for r in records) == [
        (b"err", pb.LOG_STREAM_STDERR),
        (b"out", pb.LOG_STREAM_STDOUT),
    ]


async def test_exit_code_fails_the_task(daemon: Daemon) -> None:
    controller = await started(daemon(), make_task("sh", "-c", "exit 3"))

    with pytest.raises(TaskFailed, match=r"task: non-zero exit \(3\)"):
        await controller.wait()

    assert status_of(controller).exit_code == 3


async def test_image_that_nobody_has_is_rejected(daemon: Daemon) -> None:
    said: list[str] = []
    controller = daemon().controller(make_task("true", image="localhost:1/none:9"), RESOURCES, said.append)

    with pytest.raises(TaskRejected, match="No such image: localhost:1/none:9"):
        await controller.prepare()

    assert said == ["pulling image localhost:1/none:9"]


async def test_mount_whose_source_does_not_exist_is_rejected(daemon: Daemon) -> None:
    task = make_task("true", mounts=[pb.Mount(source="/no/such/source", target="/x")])

    with pytest.raises(TaskRejected, match="bind source path does not exist: /no/such/source"):
        await prepared(daemon(), task)


async def test_command_that_is_not_in_the_image_fails_to_start(daemon: Daemon) -> None:
    controller = await prepared(daemon(), make_task("no-such-program"))

    with pytest.raises(TaskFailed, match=r"starting container failed: .*executable file not found"):
        await controller.start()


async def test_container_is_named_labelled_and_set_up_as_asked(
    daemon: Daemon, client: docker.APIClient
) -> None:
    task = make_task(
        "sleep", "600",
        env=["SLOT={{.Task.Slot}}"], dir="/tmp", user="web", hostname="web-{{.Task.Slot}}", read_only=True,
        stop_signal="SIGUSR1", stop_grace_period_ns=3 * 10**9, labels={"mine": "yes"}, init=True,
        hosts=["10.1.2.3 db db.local"], capability_drop=["NET_RAW"],
        ulimits=[pb.Ulimit(name="nofile", soft=100, hard=200)],
        mounts=[pb.Mount(type=pb.MOUNT_TYPE_TMPFS, target="/scratch")],
    )  # fmt: skip
    task.spec.resources.limits.CopyFrom(pb.Resources(nano_cpus=500_000_000, memory_bytes=64 << 20))
    runtime = daemon()

    controller = await started(runtime, task)

    found = client.inspect_container(status_of(controller).container_id)
    config, host = found["Config"], found["HostConfig"]
    assert found["Name"] == f"/web.1.{task.id}"
    assert config["Labels"]["com.docker.swarm.task.id"] == task.id
    assert config["Labels"]["com.docker.swarm.service.name"] == "web"
    assert config["Labels"]["io.swarmlet.owner"] == runtime.owner
    assert config["Labels"]["mine"] == "yes"
    assert "SLOT=1" in config["Env"]
    assert (config["WorkingDir"], config["User"], config["Hostname"]) == ("/tmp", "web", "web-1")
    assert (config["StopSignal"], config["StopTimeout"]) == ("SIGUSR1", 3)
    assert (host["NanoCpus"], host["Memory"]) == (500_000_000, 64 << 20)
    assert host["ReadonlyRootfs"] is True
    assert host["Init"] is True
    assert host["ExtraHosts"] == ["db:10.1.2.3", "db.local:10.1.2.3"]
    assert host["CapDrop"] in (["NET_RAW"], ["CAP_NET_RAW"])
    assert host["RestartPolicy"]["Name"] in ("no", "")
    assert found["State"]["Pid"] == status_of(controller).pid


async def test_shutdown_sends_the_stop_signal(daemon: Daemon) -> None:
    script = "trap 'echo bye; exit 0' USR1; echo ready; while :; do sleep 0.05; done"
    controller = await started(daemon(), make_task("sh", "-c", script, stop_signal="USR1"))

    async def ready() -> bool:
        return "ready" in await output_of(controller)

    await eventually(ready)

    await controller.shutdown()

    assert status_of(controller).exit_code == 0
    assert await output_of(controller) == "ready\nbye"


async def test_task_that_ignores_the_stop_signal_is_killed(daemon: Daemon) -> None:
    task = make_task("sleep", "600", stop_grace_period_ns=50_000_000)  # pid 1 ignores SIGTERM
    controller = await started(daemon(), task)

    await controller.shutdown()

    assert status_of(controller).exit_code == 137


async def test_container_removed_by_somebody_else_fails_the_task(
    daemon: Daemon, client: docker.APIClient
) -> None:
    controller = await started(daemon(), make_task("sleep", "600"))

    client.remove_container(status_of(controller).container_id, force=True)

    with pytest.raises(TaskFailed, match=r"task: non-zero exit \(137\)"):
        await controller.wait()
    await controller.remove()


async def test_successor_adopts_the_running_container(daemon: Daemon) -> None:
    task = make_task("sleep", "600")
    first = daemon()
    before = status_of(await started(first, task))
    await first.close()

    adopted = await started(daemon(), task)

    assert status_of(adopted) == before
    waiting = asyncio.create_task(adopted.wait())
    await adopted.terminate()
    with pytest.raises(TaskFailed):
        await waiting


async def test_successor_learns_how_a_task_ended_meanwhile(daemon: Daemon, client: docker.APIClient) -> None:
    task = make_task("sleep", "600")
    first = daemon()
    container_id = status_of(await started(first, task)).container_id
    await first.close()
    client.kill(container_id)
    client.wait(container_id)

    adopted = await started(daemon(), task)

    with pytest.raises(TaskFailed, match=r"task: non-zero exit \(137\)"):
        await adopted.wait()


async def test_remove_leaves_nothing(daemon: Daemon, client: docker.APIClient) -> None:
    runtime = daemon()
    controller = await started(runtime, make_task("sleep", "600"))
    container_id = status_of(controller).container_id

    await controller.remove()
    await controller.remove()

    assert await runtime.leftovers() == []
    assert controller.container_status() is None
    with pytest.raises(docker.errors.NotFound):
        client.inspect_container(container_id)


async def test_leftovers_of_another_owner_are_not_ours(daemon: Daemon, engine_url: str) -> None:
    first = daemon()
    task = make_task("sleep", "600", stop_signal="SIGKILL")
    await started(first, task)
    stranger = DockerRuntime(engine_url, owner="somebody-else", hostname="h")

    assert await stranger.leftovers() == []
    assert await first.leftovers() == [task.id]
    await first.remove_leftover(task.id)

    assert await first.leftovers() == []
    await stranger.close()


async def test_start_that_is_given_up_midway_is_stopped_all_the_same(
    daemon: Daemon, client: docker.APIClient
) -> None:
    controller = await prepared(daemon(), make_task("sleep", "600"))
    starting = asyncio.create_task(controller.start())
    await asyncio.sleep(0.01)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)

    await controller.terminate()

    state = client.inspect_container(status_of(controller).container_id)["State"]
    assert state["Running"] is False


async def test_ports_are_dialled_at_the_containers_address(daemon: Daemon) -> None:
    task = make_task("httpd", "-f", "-p", "8080")
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
    assert controller.port_status() is None


async def test_host_mode_port_is_reported_as_published(daemon: Daemon) -> None:
    task = make_task("httpd", "-f", "-p", "8080")
    task.endpoint.ports.add(target_port=8080, publish_mode=pb.PUBLISH_MODE_HOST)

    controller = await started(daemon(), task)

    status = controller.port_status()
    assert status is not None
    assert status.ports[0].published_port > 0
    assert list(controller.endpoint_addresses()) == []


async def test_start_returns_once_the_container_is_healthy(daemon: Daemon) -> None:
    check = pb.HealthConfig(test=["CMD-SHELL", "[ -e /tmp/ok ]"], interval_ns=50_000_000, retries=1000)
    task = make_task("sh", "-c", "sleep 0.5; touch /tmp/ok; sleep 600", healthcheck=check)

    controller = await started(daemon(), task)

    assert status_of(controller).pid > 0


async def test_container_that_turns_unhealthy_is_stopped_and_fails(daemon: Daemon) -> None:
    check = pb.HealthConfig(test=["CMD-SHELL", "[ ! -e /tmp/bad ]"], interval_ns=50_000_000, retries=1)
    task = make_task(
        "sh", "-c", "sleep 1; touch /tmp/bad; sleep 600", healthcheck=check, stop_signal="SIGKILL"
    )
    controller = await started(daemon(), task)

    with pytest.raises(TaskFailed, match="task: unhealthy"):
        await controller.wait()

    assert status_of(controller).exit_code == 137


async def test_secrets_are_files_in_memory_and_not_in_the_engine(
    daemon: Daemon, client: docker.APIClient
) -> None:
    task = make_task("sh", "-c", "cat /run/secrets/pw; stat -c %a /run/secrets/pw; cat /etc/app.conf")
    spec = task.spec.container_spec
    spec.secrets.add(secret_id="s1", secret_name="pw", file=pb.FileTarget(name="pw", mode=0o440))
    spec.configs.add(config_id="c1", config_name="conf", file=pb.FileTarget(name="/etc/app.conf"))
    resources = TaskResources(
        secrets={"s1": pb.Secret(spec=pb.SecretSpec(data=b"hush\n"))},
        configs={"c1": pb.Config(spec=pb.ConfigSpec(data=b"key=value\n"))},
    )
    controller = daemon().controller(task, resources, no_progress)

    await controller.prepare()
    await controller.start()
    await controller.wait()

    assert await output_of(controller) == "hush\n440\nkey=value"
    assert "hush" not in str(client.inspect_container(status_of(controller).container_id))


async def test_logs_tail_and_follow(daemon: Daemon) -> None:
    controller = await started(
        daemon(), make_task("sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done")
    )

    followed = await lines_of(controller, follow=True)
    last = await lines_of(controller, tail=2)

    assert [record.data for record in followed] == [b"1", b"2", b"3", b"4", b"5"]
    assert [record.data for record in last] == [b"4", b"5"]
    assert followed[0].timestamp < followed[4].timestamp


async def test_logs_of_a_terminal_come_as_one_stream(daemon: Daemon) -> None:
    controller = await started(daemon(), make_task("sh", "-c", "echo a; echo b >&2", tty=True))
    await controller.wait()

    records = await lines_of(controller)

    assert [(r.data, r.stream) for r in records] == [
        (b"a", pb.LOG_STREAM_STDOUT),
        (b"b", pb.LOG_STREAM_STDOUT),
    ]


async def test_following_can_be_given_up_while_nothing_is_written(daemon: Daemon) -> None:
    controller = await started(daemon(), make_task("sleep", "600"))

    async def follow() -> None:
        await lines_of(controller, follow=True)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.2)
    following.cancel()

    with pytest.raises(asyncio.CancelledError):
        await following


async def test_many_containers_start_at_once(daemon: Daemon) -> None:
    runtime = daemon()

    controllers = await asyncio.gather(*(started(runtime, make_task("sleep", "600")) for _ in range(10)))

    assert len({status_of(controller).pid for controller in controllers}) == 10


async def test_end_that_happened_while_the_engine_was_dead_is_not_missed(
    private_engine: PrivateEngine,
) -> None:
    runtime = DockerRuntime(private_engine.url, owner="engine-killer", hostname="host1")
    task = make_task("sleep", "600")
    controller = await started(runtime, task)
    waiting = asyncio.create_task(controller.wait())

    await asyncio.to_thread(private_engine.kill)
    with pytest.raises(TaskFailed, match="Cannot connect to the Docker daemon"):
        await prepared(runtime, make_task("true"))
    assert not waiting.done()
    await asyncio.to_thread(private_engine.start)  # without live restore, it ends what ran

    with pytest.raises(TaskFailed, match="task: non-zero exit"):
        await waiting
    await controller.remove()
    await runtime.close()
