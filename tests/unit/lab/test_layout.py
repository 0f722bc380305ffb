"""What a lab is made of, and what of a directory is its own."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from swarmlet.api.errors import FailedPrecondition, InvalidArgument, NotFound
from swarmlet.lab import layout as layouts


def everything_is_free(address: str) -> bool:
    return True


def planned(directory: Path, managers: int = 3, workers: int = 0) -> layouts.Layout:
    return layouts.plan(
        directory, managers=managers, workers=workers, runtime="process", is_free=everything_is_free
    )


def test_every_node_has_a_name_and_a_loopback_address_of_its_own(tmp_path: Path) -> None:
    layout = planned(tmp_path / "lab", managers=3, workers=2)

    names = [node.name for node in layout.nodes]
    assert names == ["manager1", "manager2", "manager3", "worker1", "worker2"]
    assert [node.role for node in layout.nodes] == ["manager"] * 3 + ["worker"] * 2
    addresses = {node.address for node in layout.nodes}
    assert len(addresses) == 5
    assert all(address.startswith("127.") for address in addresses)


def test_the_same_directory_gets_the_same_addresses_again(tmp_path: Path) -> None:
    first, second = planned(tmp_path / "lab"), planned(tmp_path / "lab")

    assert [node.address for node in first.nodes] == [node.address for node in second.nodes]


def test_a_lab_keeps_away_from_addresses_where_somebody_listens(tmp_path: Path) -> None:
    taken = planned(tmp_path / "lab").nodes[1].address

    layout = layouts.plan(
        tmp_path / "lab", managers=3, workers=0, runtime="process", is_free=lambda a: a != taken
    )

    assert taken not in [node.address for node in layout.nodes]


def test_a_lab_keeps_away_from_the_addresses_of_tasks(tmp_path: Path) -> None:
    networks = {int(planned(tmp_path / str(i)).nodes[0].address.split(".")[1]) for i in range(200)}

    assert not networks & set(range(64, 128))


def test_an_address_is_not_free_while_a_node_listens_there() -> None:
    with socket.socket() as listener:
        listener.bind(("127.61.250.9", layouts.CLUSTER_PORT))
        listener.listen()

        assert not layouts.can_listen("127.61.250.9")

    assert layouts.can_listen("127.61.250.9")


def test_a_layout_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    layout = planned(tmp_path, workers=1)
    layout.nodes[0].node_id = "n1"

    layout.save()

    assert layouts.load(tmp_path) == layout


def test_a_directory_without_a_lab_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="lab up"):
        layouts.load(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", "{", json.dumps({"nodes": [{"name": "x"}]}), "[]"])
def test_a_damaged_layout_is_named_as_such(tmp_path: Path, text: str) -> None:
    (tmp_path / "lab.json").write_text(text)

    with pytest.raises(FailedPrecondition, match="lab down"):
        layouts.load(tmp_path)


def test_a_node_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="manager1, manager2, manager3"):
        planned(tmp_path).node("manager9")


@pytest.mark.parametrize(("managers", "workers"), [(0, 0), (-1, 3), (3, -1), (30, 30)])
def test_impossible_sizes_are_refused(tmp_path: Path, managers: int, workers: int) -> None:
    with pytest.raises(InvalidArgument):
        planned(tmp_path, managers=managers, workers=workers)


def test_a_directory_too_deep_for_unix_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="shorter"):
        planned(tmp_path / ("x" * 90))


def test_files_of_others_are_not_the_labs(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "web.py").touch()
    (tmp_path / "manager1").mkdir()

    assert layouts.owned_entries(tmp_path) == []


def test_a_lab_without_its_layout_file_still_knows_its_own(tmp_path: Path) -> None:
    (tmp_path / "manager1").mkdir()
    (tmp_path / "manager1" / "daemon.log").touch()
    (tmp_path / "notes.txt").touch()

    assert layouts.owned_entries(tmp_path) == [tmp_path / "manager1"]
