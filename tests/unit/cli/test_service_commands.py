from __future__ import annotations

import json
import signal
import subprocess
import sys

import grpc

from swarmlet.api import pb
from tests.unit.cli.fakes import (
    NODE_IDS,
    SERVICE_ID,
    FakeDaemon,
    lines,
    node,
    seen,
    service,
    task,
    tasks_in,
)

WEB = "svc000000000"


def listed(daemon: FakeDaemon) -> None:
    web = service()
    web.service_status.running_tasks = 2
    web.service_status.desired_tasks = 3
    web.endpoint.ports.add(target_port=80, published_port=8080)
    daemon.services[SERVICE_ID] = web


def test_create_prints_the_id_and_the_way_to_convergence(daemon: FakeDaemon) -> None:
    created = service()
    starting = tasks_in(pb.TASK_STATE_STARTING, (1, 2, 3))
    daemon.watch = [
        seen(created, snapshot=True),
        seen(*starting),
        seen(task(1)),
        seen(task(2), task(3)),
    ]

    result = daemon.run("service", "create", "--name", "web", "--replicas", "3", "nginx:1")

    assert result.exit_code == 0, result.output
    assert result.stdout == lines(
        SERVICE_ID,
        "overall progress: 0 out of 3 tasks",
        "1/3:  ",
        "2/3:  ",
        "3/3:  ",
        "overall progress: 1 out of 3 tasks",
        "overall progress: 3 out of 3 tasks",
        "verify: Waiting 1 seconds to verify that tasks are stable...",
        "verify: Service converged",
    )


def test_interrupted_wait_leaves_the_operation_going(daemon: FakeDaemon) -> None:
    daemon.watch = [seen(service(replicas=1), snapshot=True)]
    command = [sys.executable, "-m", "swarmlet", "-H", str(daemon.socket), "service", "create", "nginx"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)

    assert "".join(shown) == lines(SERVICE_ID, "overall progress: 0 out of 1 tasks", "1/1:  ")
    assert rest == lines(
        "Operation continuing in background.",
        f"Use `swarmlet service ps {SERVICE_ID}` to check progress.",
    )
    assert (process.returncode, errors) == (0, "")


def test_detached_create_only_prints_the_id(daemon: FakeDaemon) -> None:
    result = daemon.run("service", "create", "--detach", "nginx")

    assert result.stdout == f"{SERVICE_ID}\n"
    assert daemon.asked(pb.WatchRequest) == []


def test_quiet_create_waits_without_a_word(daemon: FakeDaemon) -> None:
    daemon.watch = [seen(service(replicas=1), task(1), snapshot=True)]

    result = daemon.run("service", "create", "-q", "nginx")

    assert result.stdout == f"{SERVICE_ID}\n"
    assert len(daemon.asked(pb.WatchRequest)) == 1


def test_write_is_repeated_with_its_operation_id_while_there_is_no_leader(daemon: FakeDaemon) -> None:
    daemon.fail(
        "CreateService",
        (grpc.StatusCode.UNAVAILABLE, "no leader"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "outcome unknown"),
    )

    result = daemon.run("service", "create", "-d", "nginx")

    assert result.exit_code == 0, result.output
    ids = [request.operation_id for request in daemon.asked(pb.CreateServiceRequest)]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert ids[0]


def test_two_writes_have_two_operation_ids(daemon: FakeDaemon) -> None:
    daemon.run("service", "create", "-d", "nginx")
    daemon.run("service", "create", "-d", "nginx")

    first, second = daemon.asked(pb.CreateServiceRequest)
    assert first.operation_id != second.operation_id


def test_a_cluster_without_a_leader_is_given_up_after_the_timeout(daemon: FakeDaemon) -> None:
    daemon.fail("ListServices", *[(grpc.StatusCode.UNAVAILABLE, "the swarm has no leader")] * 1000)

    result = daemon.run("--timeout", "300ms", "service", "ls")

    assert result.exit_code == 1
    assert result.stderr == "Error response from daemon: the swarm has no leader\n"


def test_update_starts_again_when_somebody_else_wrote_in_between(daemon: FakeDaemon) -> None:
    daemon.services[SERVICE_ID] = service()
    daemon.fail("UpdateService", (grpc.StatusCode.ABORTED, "update out of sequence"))

    result = daemon.run("service", "scale", "-d", "web=5")

    assert result.stdout == "web scaled to 5\n"
    assert len(daemon.asked(pb.GetServiceRequest)) == 2


def test_scale_waits_for_what_it_changed_itself(daemon: FakeDaemon) -> None:
    daemon.services[SERVICE_ID] = service(replicas=1, version=5)
    stale = seen(service(replicas=1, version=5), task(1), snapshot=True)
    daemon.watch = [stale, seen(service(replicas=2, version=6)), seen(task(2))]

    result = daemon.run("service", "scale", "web=2")

    assert result.stdout == lines(
        "web scaled to 2",
        "overall progress: 1 out of 2 tasks",
        "1/2:  ",
        "2/2:  ",
        "overall progress: 2 out of 2 tasks",
        "verify: Waiting 1 seconds to verify that tasks are stable...",
        "verify: Service converged",
    )


def test_scale_tells_every_mistake_and_does_the_rest(daemon: FakeDaemon) -> None:
    daemon.services[SERVICE_ID] = service()

    result = daemon.run("service", "scale", "-d", "web=x", "nope=1", "web=2")

    assert result.exit_code == 1
    assert result.stdout == "web scaled to 2\n"
    assert result.stderr == lines(
        'web: invalid replicas value x: strconv.ParseUint: parsing "x": invalid syntax',
        "nope: Error response from daemon: service nope not found",
    )


def test_scale_needs_a_number_of_replicas(daemon: FakeDaemon) -> None:
    result = daemon.run("service", "scale", "web")

    assert result.exit_code == 1
    assert result.stderr == lines(
        "invalid scale specifier 'web'.",
        "See 'swarmlet service scale --help'.",
        "",
        "Usage:  swarmlet service scale SERVICE=REPLICAS [SERVICE=REPLICAS...]",
        "",
        "Scale one or multiple replicated services",
    )


def test_paused_update_ends_with_its_reason(daemon: FakeDaemon) -> None:
    daemon.services[SERVICE_ID] = service()
    paused = service(version=6)
    paused.update_status.state = pb.UPDATE_STATE_PAUSED
    paused.update_status.message = "update paused due to failure or early termination of task abc"
    daemon.watch = [seen(paused, snapshot=True)]

    result = daemon.run("service", "update", "--image", "nginx:2", "web")

    assert result.exit_code == 1
    assert result.stdout == "web\n"
    assert result.stderr == (
        "service update paused: update paused due to failure or early termination of task abc\n"
    )


def test_ls_is_dockers_table(daemon: FakeDaemon) -> None:
    listed(daemon)

    result = daemon.run("service", "ls")

    assert result.stdout == lines(
        "ID             NAME      MODE         REPLICAS   IMAGE     PORTS",
        f"{WEB}   web       replicated   2/3        nginx:1   *:8080->80/tcp",
    )


def test_ls_in_other_formats(daemon: FakeDaemon) -> None:
    listed(daemon)

    assert daemon.run("service", "ls", "-q").stdout == f"{WEB}\n"
    assert daemon.run("service", "ls", "--format", "{{.Name}}: {{.Replicas}}").stdout == "web: 2/3\n"
    assert daemon.run("service", "ls", "--format", "table {{.Name}}\\t{{upper .Mode}}").stdout == lines(
        "NAME      MODE", "web       REPLICATED"
    )
    assert json.loads(daemon.run("service", "ls", "--format", "json").stdout) == {
        "ID": WEB,
        "Image": "nginx:1",
        "Mode": "replicated",
        "Name": "web",
        "Ports": "*:8080->80/tcp",
        "Replicas": "2/3",
    }
    wrong = daemon.run("service", "ls", "--format", "{{.Foo}}")
    assert wrong.exit_code == 1
    assert """template: :1:2: executing "" at <.Foo>: can't evaluate field Foo""" in wrong.stderr


def test_ls_of_nothing_is_the_header_alone(daemon: FakeDaemon) -> None:
    assert daemon.run("service", "ls").stdout == lines(
        "ID        NAME      MODE      REPLICAS   IMAGE     PORTS"
    )


def test_filters_are_sent_by_key(daemon: FakeDaemon) -> None:
    daemon.run("service", "ls", "-f", "name=a", "--filter", "name=b", "-f", "label=x=y")

    filters = daemon.asked(pb.ListServicesRequest)[0].filters
    assert [(f.key, list(f.values)) for f in filters] == [("name", ["a", "b"]), ("label", ["x=y"])]


def test_ps_shows_history_below_the_newest_task_of_a_slot(daemon: FakeDaemon) -> None:
    daemon.services[SERVICE_ID] = service()
    daemon.nodes = [node(1, "one"), node(2, "two")]
    failed = task(
        1,
        pb.TASK_STATE_FAILED,
        identifier="old",
        desired=pb.TASK_STATE_SHUTDOWN,
        err="task: non-zero exit (137): killed by signal",
        age_seconds=180,
    )
    daemon.tasks = [
        failed,
        task(10, node=NODE_IDS[1], age_seconds=5.5),
        task(1, age_seconds=5.5),
        task(2, age_seconds=90),
    ]

    result = daemon.run("service", "ps", "web")

    assert result.stdout == lines(
        "ID             NAME        IMAGE     NODE      DESIRED STATE   CURRENT STATE                "
        "ERROR                              PORTS",
        "task1x000000   web.1       nginx:1   one       Running         Running 5 seconds ago        "
        "                                   ",
        "old000000000    \\_ web.1   nginx:1   one       Shutdown        Failed 3 minutes ago         "
        '"task: non-zero exit (137): ki…"   ',
        "task2x000000   web.2       nginx:1   one       Running         Running about a minute ago   "
        "                                   ",
        "task10x00000   web.10      nginx:1   two       Running         Running 5 seconds ago        "
        "                                   ",
    )


def test_ps_names_the_services_that_are_not_there(daemon: FakeDaemon) -> None:
    daemon.services[SERVICE_ID] = service()
    daemon.tasks = [task(1)]

    result = daemon.run("service", "ps", "-q", "web", "nope")

    assert result.exit_code == 1
    assert result.stdout == f"{task(1).id}\n"
    assert result.stderr == "no such service: nope\n"


def test_inspect_prints_dockers_json(daemon: FakeDaemon) -> None:
    listed(daemon)

    shown = json.loads(daemon.run("service", "inspect", "web").stdout)

    assert shown[0]["Spec"]["Mode"] == {"Replicated": {"Replicas": 3}}
    assert daemon.run("service", "inspect", "-f", "{{.Spec.Name}}", "web").stdout == "web\n"


def test_inspect_of_a_missing_service_prints_an_empty_list(daemon: FakeDaemon) -> None:
    result = daemon.run("service", "inspect", "nope")

    assert (result.exit_code, result.stdout, result.stderr) == (1, "[]\n", "no such service: nope\n")


def test_pretty_inspect_is_laid_out_as_dockers(daemon: FakeDaemon) -> None:
    listed(daemon)
    daemon.services[SERVICE_ID].spec.update_config.parallelism = 2
    daemon.services[SERVICE_ID].spec.task_template.resources.limits.memory_bytes = 512 * 1024**2

    result = daemon.run("service", "inspect", "--pretty", "web")

    assert result.stdout == lines(
        "",
        f"ID:\t\t{SERVICE_ID}",
        "Name:\t\tweb",
        "Service Mode:\tReplicated",
        " Replicas:\t3",
        "Placement:",
        "UpdateConfig:",
        " Parallelism:\t2",
        " On failure:\tpause",
        " Max failure ratio: 0",
        " Update order:      stop-first",
        "ContainerSpec:",
        " Image:\t\tnginx:1",
        "Resources:",
        " Limits:",
        "  Memory:\t512MiB",
        "Endpoint Mode:\tvip",
        "Ports:",
        " PublishedPort = 8080",
        "  Protocol = tcp",
        "  TargetPort = 80",
        "  PublishMode = ingress",
    )


def test_rm_prints_each_name_and_every_failure(daemon: FakeDaemon) -> None:
    daemon.services[SERVICE_ID] = service()

    result = daemon.run("service", "rm", "nope", "web")

    assert result.exit_code == 1
    assert result.stdout == "web\n"
    assert result.stderr == "Error response from daemon: service nope not found\n"
    assert daemon.services == {}


def test_logs_carry_task_and_node(daemon: FakeDaemon) -> None:
    daemon.services[SERVICE_ID] = service(replicas=10)
    daemon.nodes = [node(1, "one")]
    daemon.tasks = [task(1)]
    line = pb.LogLine(
        task_id=task(1).id,
        node_id=NODE_IDS[0],
        service_id=SERVICE_ID,
        stream=pb.LOG_STREAM_STDOUT,
        data=b"hello",
    )
    line.timestamp.FromJsonString("2026-01-02T03:04:05.000000006Z")
    problem = pb.LogLine()
    problem.CopyFrom(line)
    problem.stream = pb.LOG_STREAM_STDERR
    problem.data = b"\xff!"
    daemon.logs = [pb.ServiceLogsResponse(lines=[line, problem], warnings=["two is down"])]

    plain = daemon.run("service", "logs", "--tail", "7", "web")
    stamped = daemon.run("service", "logs", "-t", "--no-task-ids", "web")
    raw = daemon.run("service", "logs", "--raw", "web")

    assert plain.stdout == "web.1.task1x000000@one     | hello\n"
    assert plain.stderr_bytes == b"two is down\nweb.1.task1x000000@one     | \xff!\n"
    assert stamped.stdout == "2026-01-02T03:04:05.000000006Z web.1@one     | hello\n"
    assert raw.stdout == "hello\n"
    assert daemon.asked(pb.ServiceLogsRequest)[0].options.tail == 7
    assert daemon.asked(pb.ServiceLogsRequest)[1].options.tail == -1


def test_logs_of_nothing(daemon: FakeDaemon) -> None:
    result = daemon.run("service", "logs", "nope")

    assert (result.exit_code, result.stderr) == (1, "no such task or service: nope\n")
