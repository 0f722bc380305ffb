"""What reads show on every manager, on one that is cut off, and when the majority is gone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest

from swarmlet.api import pb
from swarmlet.api.v1.control_pb2_grpc import ControlStub
from tests.e2e.conftest import SLEEPER, Commands

NAMES = ("--format", "{{.Name}}")


def test_what_was_written_is_read_at_once_on_every_manager(calm: Commands) -> None:
    for number, writer in enumerate(("manager1", "manager2", "manager3") * 2):
        name = f"fresh{number}"
        calm.swarmlet("service", "create", "-d", "--name", name, "--replicas", "0", *SLEEPER, node=writer)

        for reader in ("manager1", "manager2", "manager3"):
            assert name in calm.swarmlet("service", "ls", *NAMES, node=reader).split()


@pytest.mark.root
def test_a_leader_that_is_cut_off_answers_nothing_old(lab: Commands) -> None:
    if os.geteuid() != 0:
        pytest.skip("cutting needs root")
    leader = lab.leader()
    other = next(name for name in lab.status() if name != leader)
    with Reads(lab, leader) as reads:
        reads.until(lambda: reads.answers > 10)

        lab.lab("cut", leader)
        acknowledged = _create_without_a_pause(lab, other, count=30)

        reads.until(lambda: any(began > acknowledged[-1][1] for began in reads.refusals))
        reads.check(acknowledged)
    said = lab.swarmlet("service", "ls", node=leader, fails=True)
    assert "The swarm does not have a leader." in said
    assert "2 of 3 managers are unreachable" in said
    assert "after0" not in lab.swarmlet("--stale", "service", "ls", *NAMES, node=leader).split()

    lab.lab("heal", leader)

    lab.until(lambda: lab.status()[leader]["state"] == "Ready", "the healed node Ready")
    assert "after29" in lab.swarmlet("service", "ls", *NAMES, node=leader).split()


def test_without_a_majority_reads_say_who_is_missing_and_show_what_was_known_on_request(
    lab: Commands,
) -> None:
    lab.create("known")

    lab.lab("kill", "manager2", "manager3")

    for command in (("service", "ls"), ("node", "ls"), ("service", "rm", "known")):
        said = lab.swarmlet(*command, node="manager1", fails=True)
        assert "The swarm does not have a leader." in said
        assert "2 of 3 managers are unreachable (manager2 at 127." in said
        assert "--force-new-cluster" in said
    assert "known" in lab.swarmlet("--stale", "service", "ls", *NAMES, node="manager1").split()
    nodes = lab.swarmlet(
        "--stale", "node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}", node="manager1"
    )
    assert nodes.splitlines() == ["manager1 Reachable", "manager2 Unreachable", "manager3 Unreachable"]
    assert "--stale" in lab.swarmlet("--stale", "service", "rm", "known", node="manager1", fails=True)
    lab.lab("start", "manager2")
    lab.until(lambda: any(node["leader"] for node in lab.status().values()), "a leader again")
    assert "known" in lab.swarmlet("service", "ls", *NAMES, node="manager1").split()


class Reads:
    """Lists the services on one manager, again and again, while its block lasts."""

    def __init__(self, lab: Commands, node: str) -> None:
        self._lab = lab
        self._node = node
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._answered: list[tuple[float, frozenset[str]]] = []
        self.refusals: list[float] = []
        """When those reads began that were refused."""

    def __enter__(self) -> Reads:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def answers(self) -> int:
        return len(self._answered)

    def _run(self) -> None:
        with _stub(self._lab, self._node) as control:
            while not self._is_over.is_set():
                began = time.monotonic()
                try:
                    services = control.ListServices(pb.ListServicesRequest(), timeout=3).services
                except grpc.RpcError:
                    self.refusals.append(began)
                else:
                    self._answered.append((began, frozenset(s.spec.name for s in services)))

    def until(self, true: Callable[[], bool]) -> None:
        self._lab.until(true, "enough reads")

    def check(self, acknowledged: list[tuple[str, float]]) -> None:
        """No read that began after a write was acknowledged missed it."""
        for began, names in self._answered:
            assert {name for name, at in acknowledged if at < began} <= names


def _create_without_a_pause(lab: Commands, node: str, *, count: int) -> list[tuple[str, float]]:
    """Creates after0, after1, ... through `node`; their names and when each was acknowledged."""
    acknowledged = []
    with _stub(lab, node) as control:
        for number in range(count):
            spec = pb.ServiceSpec(name=f"after{number}")
            spec.mode.replicated.replicas = 0
            spec.task_template.container_spec.image = "none"
            request = pb.CreateServiceRequest(spec=spec, operation_id=f"operation{number}")
            control.CreateService(request, timeout=20)
            acknowledged.append((spec.name, time.monotonic()))
    return acknowledged


@contextmanager
def _stub(lab: Commands, node: str) -> Iterator[ControlStub]:
    with grpc.insecure_channel(f"unix:{lab.directory / node / 'swarmlet.sock'}") as channel:
        yield ControlStub(channel)
