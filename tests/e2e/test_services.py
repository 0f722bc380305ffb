"""Services from creation to removal, on three managers, as a user types it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from swarmlet.lab import processes
from swarmlet.lab.load import Load, fetch
from tests.e2e.conftest import SLEEPER, Commands

WEB = Path(__file__).parents[2] / "swarmlet" / "lab" / "web.py"


def web_command(port: int) -> tuple[str, ...]:
    return ("web", "python3", str(WEB), "{{.Task.Address}}", str(port))


def test_a_created_service_is_listed_with_its_replicas_running(calm: Commands) -> None:
    calm.create("listed", replicas=3)

    row = next(row for row in calm.rows("service", "ls") if row["Name"] == "listed")
    assert row["Replicas"] == "3/3"
    assert row["Mode"] == "replicated"
    tasks = calm.tasks("listed")
    assert sorted(task["Name"] for task in tasks) == ["listed.1", "listed.2", "listed.3"]
    assert {task["Node"] for task in tasks} == {"manager1", "manager2", "manager3"}


def test_creation_shows_its_progress_and_says_converged(calm: Commands) -> None:
    said = calm.swarmlet("service", "create", "--name", "progress", "--replicas", "2", *SLEEPER)

    assert "overall progress: 2 out of 2 tasks" in said
    assert "verify: Service" in said and "converged" in said


def test_every_manager_tells_the_same(calm: Commands) -> None:
    calm.create("same", replicas=2)
    (there,) = calm.swarmlet("service", "ls", "-q", "--filter", "name=same").split()

    for name in calm.status():
        calm.until(
            lambda name=name: (
                calm.swarmlet("service", "ls", "-q", "--filter", "name=same", node=name).split()  # type: ignore[misc]
                == [there]
            ),
            f"the service on {name}",
        )


def test_scaling_up_and_down(calm: Commands) -> None:
    calm.create("scaled", replicas=1)

    calm.swarmlet("service", "scale", "scaled=4")
    assert calm.replicas("scaled") == "4/4"

    calm.swarmlet("service", "scale", "scaled=2")
    calm.until(lambda: calm.replicas("scaled") == "2/2", "two replicas")
    calm.until(lambda: len(calm.tasks("scaled")) == 2, "two tasks")


def test_logs_come_from_every_node(calm: Commands) -> None:
    calm.create("talker", "none", "sh", "-c", "echo i am $SWARMLET_TASK_SLOT; exec sleep 3600", replicas=3)

    calm.until(
        lambda: all(f"i am {slot}" in calm.swarmlet("service", "logs", "talker") for slot in (1, 2, 3)),
        "the line of every task",
    )


def test_a_removed_service_leaves_no_tasks(calm: Commands) -> None:
    calm.create("removed", replicas=2)
    assert len(processes.marked(b"SWARMLET_SERVICE_NAME=removed")) >= 2

    assert calm.swarmlet("service", "rm", "removed").strip() == "removed"

    calm.until(lambda: not processes.marked(b"SWARMLET_SERVICE_NAME=removed"), "its processes gone")
    assert "no such service" in calm.swarmlet("service", "ps", "removed", fails=True).lower()


def test_a_published_port_answers_on_every_node(calm: Commands) -> None:
    calm.create("ports", "--publish", "18081:8000", *web_command(8000), replicas=2)

    for node in calm.status().values():
        outcome = asyncio.run(fetch(f"http://{node['address']}:18081/"))
        assert outcome.ok == 1, (node["name"], outcome.reasons())


def test_a_killed_task_is_replaced_and_shown_as_history(calm: Commands) -> None:
    calm.create("healed", "none", "sh", "-c", "echo $$; exec sleep 3600")
    calm.until(lambda: bool(calm.swarmlet("service", "logs", "--raw", "healed").split()), "the task's pid")
    pid = int(calm.swarmlet("service", "logs", "--raw", "healed").split()[0])
    (first,) = calm.tasks("healed")

    os.kill(pid, signal.SIGKILL)

    calm.until(lambda: [t["ID"] for t in calm.tasks("healed")] not in ([], [first["ID"]]), "a replacement")
    history = calm.tasks("healed", running=False)
    (old,) = [task for task in history if task["ID"] == first["ID"]]
    assert old["CurrentState"].startswith("Failed")
    assert "137" in old["Error"]
    assert r"\_ healed.1" in calm.swarmlet("service", "ps", "healed")


async def test_a_rolling_update_under_load_fails_no_request(calm: Commands) -> None:
    publish = ("--publish", "18082:8000", "--env", "VERSION=1", "--update-parallelism", "2")
    await asyncio.to_thread(calm.create, "rolled", *publish, *web_command(8000), replicas=4)
    urls = [f"http://{node['address']}:18082/" for node in calm.status().values()]

    async with Load(urls, rate=100) as load:
        await asyncio.to_thread(calm.swarmlet, "service", "update", "--env-add", "VERSION=2", "rolled")
        answered = load.outcome.ok
        async with asyncio.timeout(20):
            while True:
                if load.outcome.ok >= answered + 60:
                    break
                await asyncio.sleep(0.05)

    assert load.outcome.failed == 0, load.outcome.examples
    assert any("version 1" in body for body in load.outcome.bodies)
    after = [(await fetch(urls[i % 3])).bodies for i in range(6)]
    assert all("version 2" in body for bodies in after for body in bodies)


def test_a_drained_node_loses_its_tasks_to_others(calm: Commands) -> None:
    calm.create("drained", replicas=3)

    calm.swarmlet("node", "update", "--availability", "drain", "manager2")
    try:
        calm.until(
            lambda: (
                sorted(t["Node"] for t in calm.tasks("drained"))
                in (["manager1", "manager1", "manager3"], ["manager1", "manager3", "manager3"])
            ),
            "all three elsewhere",
        )
    finally:
        calm.swarmlet("node", "update", "--availability", "active", "manager2")


def test_a_constraint_decides_the_node(calm: Commands) -> None:
    calm.create("pinned", "--constraint", "node.hostname==manager3", *SLEEPER, replicas=2)

    assert {task["Node"] for task in calm.tasks("pinned")} == {"manager3"}


def test_service_ps_has_dockers_keys(calm: Commands) -> None:
    calm.create("keys")

    wanted = {"ID", "Name", "Image", "Node", "DesiredState", "CurrentState", "Error", "Ports"}
    assert wanted <= set(calm.rows("service", "ps", "keys")[0])
