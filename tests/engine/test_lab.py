"""A lab whose nodes share an engine: each hurts its own containers only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from swarmlet.lab import containers, example
from swarmlet.lab.cluster import Lab
from tests.e2e.conftest import Commands, running_lab

pytestmark = pytest.mark.engine


@pytest.fixture
def docker_lab(engine_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    monkeypatch.setenv("DOCKER_HOST", engine_url)
    with running_lab("--managers", "3", runtime="docker") as commands:
        ids = [node.node_id for node in Lab.load(commands.directory).layout.nodes]
        yield commands
    assert [_containers(node_id) for node_id in ids] == [{}, {}, {}]
    with containers.engine() as client:
        assert not client.images.list(name=example.IMAGE)


def test_power_loss_takes_the_nodes_containers_and_no_others(docker_lab: Commands) -> None:
    docker_lab.create("sleepers", example.image(), "sleep", "3600", replicas=3)
    here = Lab.load(docker_lab.directory)
    victim = next(name for name in docker_lab.status() if name != docker_lab.leader())
    before = {node.name: _containers(node.node_id) for node in here.layout.nodes}
    assert all(list(each.values()) == ["running"] for each in before.values())

    docker_lab.lab("kill", victim)

    docker_lab.use_live_manager()
    assert list(_containers(here.layout.node(victim).node_id).values()) == ["exited"]
    docker_lab.until(lambda: docker_lab.replicas("sleepers") == "3/3", "a replacement")
    for name in {*before} - {victim}:
        assert before[name].items() <= _containers(here.layout.node(name).node_id).items()


def test_a_paused_nodes_containers_are_frozen_with_it(docker_lab: Commands) -> None:
    docker_lab.create("sleepers", example.image(), "sleep", "3600", replicas=3)
    here = Lab.load(docker_lab.directory)
    victim = next(name for name in docker_lab.status() if name != docker_lab.leader())

    docker_lab.lab("pause", victim)

    node_id = here.layout.node(victim).node_id
    assert list(_containers(node_id).values()) == ["paused"]
    asyncio.run(here.resume(victim))
    assert list(_containers(node_id).values()) == ["running"]


def _containers(node_id: str) -> dict[str, str]:
    """Id and state of the node's containers."""
    with containers.engine() as client:
        filters = {"label": f"{containers.OWNER_LABEL}={node_id}"}
        return {each["Id"]: each["State"] for each in client.api.containers(all=True, filters=filters)}
