from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from swarmlet.api import pb
from tests.unit.cli.fakes import NODE_IDS, SERVICE_ID, FakeDaemon, lines, node, service, task


@pytest.fixture
def cluster(daemon: FakeDaemon) -> FakeDaemon:
    daemon.nodes = [node(2, "two", manager=False), node(1, "one", leader=True)]
    daemon.cluster.join_tokens.worker = "SWMTKN-1-w"
    daemon.cluster.join_tokens.manager = "SWMTKN-1-m"
    return daemon


def test_init_tells_how_others_join(daemon: FakeDaemon) -> None:
    result = daemon.run("swarm", "init", "--task-history-limit", "0", "--cert-expiry", "24h")

    assert result.stdout == lines(
        f"Swarm initialized: current node ({NODE_IDS[0]}) is now a manager.",
        "",
        "To add a worker to this swarm, run the following command:",
        "",
        "    swarmlet swarm join --token SWMTKN-1-w 10.0.0.1:2377",
        "",
        "To add a manager to this swarm, run 'swarmlet swarm join-token manager' "
        "and follow the instructions.",
    )
    request = daemon.asked(pb.SwarmInitRequest)[0]
    assert request.task_history_limit == 0
    assert request.HasField("task_history_limit")
    assert request.cert_expiry_ns == 24 * 3600 * 10**9


def test_init_that_is_refused_shows_the_daemons_words(daemon: FakeDaemon) -> None:
    daemon.fail("Init", (grpc.StatusCode.FAILED_PRECONDITION, "This node is already part of a swarm."))

    result = daemon.run("swarm", "init")

    assert result.exit_code == 1
    assert result.stderr == "Error response from daemon: This node is already part of a swarm.\n"


def test_join_takes_the_token_from_wherever_it_is_kept(daemon: FakeDaemon, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")

    outputs = [
        daemon.run("swarm", "join", "--token", "from-flag", "10.0.0.1:2377"),
        daemon.run("swarm", "join", "--token", "-", "10.0.0.1:2377", input="from-stdin\n"),
        daemon.run("swarm", "join", "--token-file", str(file), "10.0.0.1:2377"),
        daemon.run("swarm", "join", "10.0.0.1:2377", env={"SWARMLET_JOIN_TOKEN": "from-env"}),
    ]

    assert {output.stdout for output in outputs} == {"This node joined a swarm as a worker.\n"}
    tokens = [request.token for request in daemon.asked(pb.SwarmJoinRequest)]
    assert tokens == ["from-flag", "from-stdin", "from-file", "from-env"]


def test_join_token_prints_the_command_to_run(cluster: FakeDaemon) -> None:
    shown = cluster.run("swarm", "join-token", "manager")
    quiet = cluster.run("swarm", "join-token", "-q", "worker")
    rotated = cluster.run("swarm", "join-token", "--rotate", "worker")
    wrong = cluster.run("swarm", "join-token", "boss")

    assert shown.stdout == lines(
        "To add a manager to this swarm, run the following command:",
        "",
        "    swarmlet swarm join --token SWMTKN-1-m 10.0.0.1:2377",
        "",
    )
    assert quiet.stdout == "SWMTKN-1-w\n"
    assert rotated.stdout.startswith("Successfully rotated worker join token.\n\nTo add a worker")
    assert "SWMTKN-1-new" in rotated.stdout
    assert (wrong.exit_code, wrong.stderr) == (1, "unknown role boss\n")


def test_leave_and_update(cluster: FakeDaemon) -> None:
    assert cluster.run("swarm", "leave", "--force").stdout == "Node left the swarm.\n"
    assert cluster.run("swarm", "update", "--dispatcher-heartbeat", "2s").stdout == "Swarm updated.\n"
    assert cluster.asked(pb.SwarmLeaveRequest)[0].force
    assert cluster.cluster.spec.dispatcher.heartbeat_period_ns == 2_000_000_000


def test_node_ls_marks_the_own_node(cluster: FakeDaemon) -> None:
    result = cluster.run("node", "ls")

    assert result.stdout == lines(
        "ID                            HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION",
        f"{NODE_IDS[0]} *   one        Ready     Active         Leader           0.1.0",
        f"{NODE_IDS[1]}     two        Ready     Active                          0.1.0",
    )


def test_node_ls_in_other_formats(cluster: FakeDaemon) -> None:
    first = json.loads(cluster.run("node", "ls", "--format", "json").stdout.splitlines()[0])

    assert first == {
        "Availability": "Active",
        "EngineVersion": "0.1.0",
        "Hostname": "one",
        "ID": NODE_IDS[0],
        "ManagerStatus": "Leader",
        "Self": True,
        "Status": "Ready",
        "TLSStatus": "Unknown",
    }
    assert cluster.run("node", "ls", "-q").stdout == lines(*NODE_IDS)


def test_node_ps_is_about_the_own_node_unless_told_otherwise(cluster: FakeDaemon) -> None:
    cluster.services[SERVICE_ID] = service()
    cluster.tasks = [task(1)]

    own = cluster.run("node", "ps", "--format", "{{.Name}}@{{.Node}}")
    cluster.run("node", "ps", "two")

    assert own.stdout == "web.1@one\n"
    filters = [request.filters[0] for request in cluster.asked(pb.ListTasksRequest)]
    assert [(f.key, list(f.values)) for f in filters] == [("node", [NODE_IDS[0]]), ("node", [NODE_IDS[1]])]


def test_node_update_changes_only_what_is_named(cluster: FakeDaemon) -> None:
    cluster.nodes[0].spec.labels["old"] = "1"

    result = cluster.run(
        "node", "update", "--availability", "drain", "--label-add", "a=b", "--label-rm", "old", "two"
    )

    assert result.stdout == "two\n"
    spec = cluster.asked(pb.UpdateNodeRequest)[0].spec
    assert spec == pb.NodeSpec(
        labels={"a": "b"}, role=pb.NODE_ROLE_WORKER, availability=pb.NODE_AVAILABILITY_DRAIN
    )


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            ("--availability", "x"),
            'invalid availability "x", only active, pause and drain are supported',
        ),
        (("--role", "x"), 'invalid role "x", only worker and manager are supported'),
        (("--label-rm", "x"), "key x doesn't exist in node's labels"),
    ],
)
def test_wrong_node_updates_change_nothing(cluster: FakeDaemon, args: tuple[str, ...], text: str) -> None:
    result = cluster.run("node", "update", *args, "two")

    assert (result.exit_code, result.stderr) == (1, f"{text}\n")
    assert cluster.asked(pb.UpdateNodeRequest) == []


def test_promote_and_demote_say_what_happened(cluster: FakeDaemon) -> None:
    promoted = cluster.run("node", "promote", "two", "one")
    demoted = cluster.run("node", "demote", "two")

    assert promoted.stdout == lines(
        "Node two promoted to a manager in the swarm.", f"Node {NODE_IDS[0]} is already a manager."
    )
    assert demoted.stdout == "Manager two demoted in the swarm.\n"


def test_node_rm_and_inspect(cluster: FakeDaemon) -> None:
    removed = cluster.run("node", "rm", "-f", "two")
    inspected = cluster.run("node", "inspect", "self", "-f", "{{.Description.Hostname}}")
    pretty = cluster.run("node", "inspect", "--pretty", "self")

    assert removed.stdout == "two\n"
    request = cluster.asked(pb.RemoveNodeRequest)[0]
    assert (request.node_id, request.force) == (NODE_IDS[1], True)
    assert inspected.stdout == "one\n"
    assert f"ID:\t\t\t{NODE_IDS[0]}\nHostname:              \tone\n" in pretty.stdout
    assert (
        "Manager Status:\n Address:\t\t10.0.0.1:2377\n Raft Status:\t\tReachable\n Leader:\t\tYes\n"
        in pretty.stdout
    )


def test_system_info(daemon: FakeDaemon) -> None:
    inactive = daemon.run("system", "info", "--format", "{{.Swarm.LocalNodeState}}")
    daemon.info.local_node_state = pb.LOCAL_NODE_STATE_ACTIVE
    daemon.info.control_available = True
    daemon.info.managers.add(node_id=NODE_IDS[0], address="10.0.0.1:2377")
    active = daemon.run("system", "info")

    assert inactive.stdout == "inactive\n"
    assert "Swarm: active\n" in active.stdout
    assert " Is Manager: true\n" in active.stdout
    assert "  10.0.0.1:2377\n" in active.stdout
