"""Wrong input and broken surroundings: a clear error, nothing half-done, the daemon alive where it can be."""

from __future__ import annotations

import socket

from tests.e2e.conftest import Commands, Daemons


def init(commands: Commands) -> tuple[str, str, str]:
    """Makes a swarm; its worker token, manager token and join address."""
    commands.swarmlet("swarm", "init")
    said = commands.swarmlet("swarm", "join-token", "worker")
    address = said.split()[-1]
    worker = commands.swarmlet("swarm", "join-token", "-q", "worker").strip()
    manager = commands.swarmlet("swarm", "join-token", "-q", "manager").strip()
    return worker, manager, address


# ---- joining -----------------------------------------------------------


def test_a_join_with_a_wrong_token_is_refused_and_the_right_one_still_works(daemons: Daemons) -> None:
    first, second = daemons.ready("manager1"), daemons.ready("manager2")
    _, manager, address = init(first)
    head, _, secret = manager.rpartition("-")
    wrong = f"{head}-{secret[::-1]}"

    said = second.swarmlet("swarm", "join", "--token", wrong, address, fails=True)

    assert "token" in said
    assert secret not in said
    second.swarmlet("swarm", "join", "--token", manager, address)
    assert len(first.rows("node", "ls")) == 2


def test_a_token_of_another_cluster_is_refused_before_it_is_sent(daemons: Daemons) -> None:
    first, second, third = (daemons.ready(f"manager{i}") for i in (1, 2, 3))
    _, _, address = init(first)
    _, foreign, _ = init(second)

    said = third.swarmlet("swarm", "join", "--token", foreign, address, fails=True)

    assert said.strip()
    assert len(first.rows("node", "ls")) == 1


def test_a_worker_token_makes_a_worker_that_manages_nothing(daemons: Daemons) -> None:
    first, second = daemons.ready("manager1"), daemons.ready("manager2")
    worker, _, address = init(first)

    said = second.swarmlet("swarm", "join", "--token", worker, address)

    assert "as a worker" in said
    assert "manager" in second.swarmlet("node", "ls", fails=True)


def test_a_rotated_token_no_longer_works(daemons: Daemons) -> None:
    first, second = daemons.ready("manager1"), daemons.ready("manager2")
    _, manager, address = init(first)
    first.swarmlet("swarm", "join-token", "--rotate", "-q", "manager")

    said = second.swarmlet("swarm", "join", "--token", manager, address, fails=True)

    assert "token" in said


def test_text_that_is_no_token_is_called_so(daemons: Daemons) -> None:
    commands = daemons.ready("manager1")

    said = commands.swarmlet("swarm", "join", "--token", "hello", "127.0.0.1:2377", fails=True)

    assert "token" in said


def test_a_join_to_an_address_that_does_not_answer_says_so_and_leaves_the_node_free(daemons: Daemons) -> None:
    first, second = daemons.ready("manager1"), daemons.ready("manager2")
    _, manager, _ = init(first)
    nobody = f"{daemons.nodes['manager3'].address}:2377"

    said = second.swarmlet("swarm", "join", "--token", manager, nobody, fails=True)

    assert nobody.partition(":")[0] in said
    second.swarmlet("swarm", "init")


def test_a_node_joins_only_one_swarm(daemons: Daemons) -> None:
    first = daemons.ready("manager1")
    _, manager, address = init(first)

    assert "already part of a swarm" in first.swarmlet("swarm", "init", fails=True)
    assert "already part of a swarm" in first.swarmlet(
        "swarm", "join", "--token", manager, address, fails=True
    )


def test_commands_of_a_swarm_outside_of_one_say_what_to_do(daemons: Daemons) -> None:
    commands = daemons.ready("manager1")

    said = commands.swarmlet("service", "ls", fails=True)

    assert "swarm init" in said and "swarm join" in said


# ---- a daemon's surroundings --------------------------------------------


def test_two_daemons_on_one_state_directory(daemons: Daemons) -> None:
    first = daemons.ready("manager1")

    second = daemons.start("manager2", state_of="manager1")

    _, said = second.communicate(timeout=60)
    assert second.returncode != 0
    assert "in use by another swarmlet daemon" in said
    first.swarmlet("swarm", "init")


def test_two_daemons_on_one_socket(daemons: Daemons) -> None:
    first = daemons.ready("manager1")

    second = daemons.start("manager2", socket=daemons.nodes["manager1"].socket)

    _, said = second.communicate(timeout=60)
    assert second.returncode != 0
    assert "another swarmlet daemon answers" in said
    first.swarmlet("swarm", "init")


def test_a_taken_cluster_port_is_told_by_init_and_the_daemon_lives(daemons: Daemons) -> None:
    commands = daemons.ready("manager1")
    address = daemons.nodes["manager1"].address

    with socket.create_server((address, 2377)):
        said = commands.swarmlet("swarm", "init", fails=True)

    assert f"{address}:2377" in said
    commands.swarmlet("swarm", "init")


def test_a_damaged_membership_file_stops_the_daemon_with_its_name(daemons: Daemons) -> None:
    path = daemons.nodes["manager1"].state_dir / "node.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"node_id": ')

    process = daemons.start("manager1")

    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert str(path) in said and "damaged" in said
    assert "Traceback" not in said


def test_a_damaged_log_stops_the_daemon_loudly(daemons: Daemons) -> None:
    commands = daemons.ready("manager1")
    init(commands)
    commands.create("kept")
    daemons.end()
    journal = daemons.nodes["manager1"].state_dir / "raft"
    for path in journal.rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            data = bytearray(path.read_bytes())
            # In the middle: a torn end would be a crash's, and is cut off.
            data[len(data) // 3] ^= 0xFF
            path.write_bytes(bytes(data))

    process = daemons.start("manager1")

    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert str(daemons.directory) in said
    assert "Traceback" not in said


def test_a_state_directory_that_cannot_be_written_is_named(daemons: Daemons) -> None:
    daemons.nodes["manager1"].directory.mkdir()
    daemons.nodes["manager1"].state_dir.write_text("a file")

    process = daemons.start("manager1")

    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert str(daemons.nodes["manager1"].state_dir) in said


def test_a_command_without_a_daemon_says_that_there_is_none(daemons: Daemons) -> None:
    commands = Commands(daemons.directory, host=daemons.nodes["manager1"].host)

    assert "Is the swarmlet daemon running" in commands.swarmlet("node", "ls", fails=True)


# ---- services -----------------------------------------------------------


def test_a_command_that_does_not_exist_is_told_in_service_ps(calm: Commands) -> None:
    calm.swarmlet(
        "service", "create", "-d", "--name", "absent", "--restart-condition", "none", "x", "/no/such/program"
    )

    calm.until(lambda: "no such file" in calm.swarmlet("service", "ps", "--no-trunc", "absent"), "the reason")


def test_a_command_that_exits_at_once_is_told_with_its_status(calm: Commands) -> None:
    calm.swarmlet(
        *("service", "create", "-d", "--name", "quits", "--restart-condition", "on-failure"),
        *("--restart-max-attempts", "2", "--restart-delay", "0s", "x", "sh", "-c", "exit 3"),
    )

    calm.until(lambda: len(_failed(calm, "quits")) == 3, "the first attempt and two more")
    assert all("(3)" in task["Error"] for task in _failed(calm, "quits"))


def test_a_constraint_that_no_node_meets_is_told_in_service_ps(calm: Commands) -> None:
    calm.swarmlet(
        "service", "create", "-d", "--name", "nowhere", "--constraint", "node.labels.moon==full", "x", "true"
    )

    calm.until(
        lambda: "no suitable node" in calm.swarmlet("service", "ps", "--no-trunc", "nowhere"), "the reason"
    )
    calm.swarmlet("service", "ls")


def test_a_published_port_is_given_only_once(calm: Commands) -> None:
    calm.create("first", "--publish", "18090:80", "x", "sleep", "100")

    said = calm.swarmlet(
        "service", "create", "--name", "second", "--publish", "18090:80", "x", "sleep", "100", fails=True
    )

    assert "18090" in said
    assert "second" not in calm.swarmlet("service", "ls")


def test_a_name_is_given_only_once(calm: Commands) -> None:
    calm.create("unique")

    assert "unique" in calm.swarmlet("service", "create", "--name", "unique", "x", "true", fails=True)


def test_wrong_flag_values_are_named(calm: Commands) -> None:
    for flags in (
        ("--replicas", "many"),
        ("--replicas", "-1"),
        ("--publish", "99999:80"),
        ("--update-order", "sideways"),
        ("--restart-condition", "sometimes"),
        ("--constraint", "node.hostname"),
        ("--limit-memory", "lots"),
        ("--mode", "everywhere"),
    ):
        said = calm.swarmlet("service", "create", *flags, "--name", "wrong", "x", "true", fails=True)
        assert flags[0].removeprefix("--") in said or flags[1] in said, (flags, said)
    assert "wrong" not in calm.swarmlet("service", "ls")


def test_what_is_not_there_cannot_be_changed(calm: Commands) -> None:
    for words in (
        ("scale", "ghost=2"),
        ("update", "ghost"),
        ("rm", "ghost"),
        ("ps", "ghost"),
        ("logs", "ghost"),
    ):
        assert "ghost" in calm.swarmlet("service", *words, fails=True)


def _failed(commands: Commands, service: str) -> list[dict[str, str]]:
    return [t for t in commands.tasks(service, running=False) if t["CurrentState"].startswith("Failed")]
