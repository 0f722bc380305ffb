"""Reads that ask the leader or, with --stale, nobody; and how long a command waits for a majority."""

from __future__ import annotations

import grpc
import pytest

from swarmlet.api import pb
from swarmlet.api.wire import STALE_METADATA
from tests.unit.cli.fakes import SERVICE_ID, FakeDaemon

GONE = (grpc.StatusCode.UNAVAILABLE, "2 of 3 managers are unreachable")
UNKNOWN = (grpc.StatusCode.DEADLINE_EXCEEDED, "whether the change was made is not known")


def test_reads_ask_for_the_newest_state(daemon: FakeDaemon) -> None:
    daemon.run("service", "ls")

    assert daemon.asked(pb.ListServicesRequest)
    assert not any(STALE_METADATA in metadata for metadata in daemon.metadata)


@pytest.mark.parametrize("command", [("service", "ls"), ("node", "ls"), ("node", "ps", "self")])
def test_stale_reads_say_so(daemon: FakeDaemon, command: tuple[str, ...]) -> None:
    daemon.run("--stale", *command)

    assert daemon.metadata
    assert all(STALE_METADATA in metadata for metadata in daemon.metadata)


def test_a_change_is_not_made_from_a_stale_view(daemon: FakeDaemon) -> None:
    daemon.services[SERVICE_ID] = pb.Service(id=SERVICE_ID, spec=pb.ServiceSpec(name="web"))

    result = daemon.run("--stale", "service", "rm", "web")

    assert result.exit_code == 1
    assert "--stale is for commands that show something" in result.stderr
    assert not daemon.asked(pb.RemoveServiceRequest)


def test_a_lost_majority_is_not_waited_for(daemon: FakeDaemon) -> None:
    daemon.majority_is_lost = True
    daemon.fail("ListServices", GONE, GONE)

    result = daemon.run("service", "ls")

    assert result.exit_code == 1
    assert result.stderr == "Error response from daemon: 2 of 3 managers are unreachable\n"
    assert len(daemon.asked(pb.ListServicesRequest)) == 1


def test_a_lost_majority_is_waited_for_when_the_user_asks_for_patience(daemon: FakeDaemon) -> None:
    daemon.majority_is_lost = True
    daemon.fail("ListServices", GONE, GONE)

    result = daemon.run("--timeout", "1m", "service", "ls")

    assert result.exit_code == 0
    assert len(daemon.asked(pb.ListServicesRequest)) == 3


def test_a_write_that_may_be_done_is_never_called_undone(daemon: FakeDaemon) -> None:
    daemon.fail("CreateService", UNKNOWN, *[GONE] * 1000)

    result = daemon.run("--timeout", "300ms", "service", "create", "-d", "nginx")

    assert result.exit_code == 1
    assert "whether the change was made is not known" in result.stderr
