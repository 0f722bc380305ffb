"""Cuts drop real packets of real processes, and healing lets them pass again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmlet.api.errors import PermissionDenied
from swarmlet.lab import cuts, processes

LAB = "0unittest"

# Listens on its address, then connects to each address it is told on its input.
PEER = """
import socket, sys, threading
listener = socket.create_server((sys.argv[1], 2377))
def echo(connection):
    while data := connection.recv(100):
        connection.sendall(data)
def accept():
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
kept = {}
print("listening", flush=True)
for line in sys.stdin:
    verb, address = line.split()
    try:
        if verb == "open":
            kept[address] = socket.create_connection((address, 2377), 1)
            kept[address].settimeout(1)
        else:
            kept[address].sendall(b"x")
            assert kept[address].recv(1)
        print("yes", flush=True)
    except OSError:
        print("no", flush=True)
"""


class Peer:
    """A node as far as cuts can tell: a process in a group, with an address."""

    def __init__(self, name: str, address: str, log: Path) -> None:
        self.name, self.address = name, address
        self.group = cuts.make_group(LAB, name)
        assert self.group is not None
        # As the lab does it: sockets belong to the group in which they are made.
        enter = 'echo $$ > "$0" && exec "$@"'
        self.process = subprocess.Popen(
            ["sh", "-c", enter, str(self.group / "cgroup.procs"), sys.executable, "-c", PEER, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
            text=True,
        )
        assert self._answer() == "listening"

    def ask(self, verb: str, other: Peer) -> bool:
        assert self.process.stdin is not None
        print(verb, other.address, file=self.process.stdin, flush=True)
        return self._answer() == "yes"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[list[Peer]]:
    if os.geteuid() != 0 or not shutil.which("nft"):
        pytest.skip("cutting needs root and nft")
    if cuts.make_group(LAB, "probe") is None:
        pytest.skip("cutting needs version 2 control groups")
    made = [Peer(f"manager{i}", f"127.62.250.{i}", tmp_path / "log") for i in (1, 2, 3)]
    yield made
    for peer in made:
        peer.end()
    cuts.heal_all(LAB)
    cuts.remove_groups(LAB)
    assert cuts.groups(LAB) == []
    assert cuts.cut_nodes(LAB) == frozenset()


@pytest.mark.root
def test_a_cut_node_reaches_nobody_and_is_reached_by_nobody(peers: list[Peer]) -> None:
    cut, other, _ = peers

    cuts.cut(LAB, cut.name, 1, [])

    assert not cut.ask("open", other)
    assert not other.ask("open", cut)


@pytest.mark.root
def test_a_cut_node_still_reaches_itself(peers: list[Peer]) -> None:
    cut = peers[0]

    cuts.cut(LAB, cut.name, 1, [])

    assert cut.ask("open", cut)
    assert cut.ask("talk", cut)


@pytest.mark.root
def test_the_others_still_reach_each_other(peers: list[Peer]) -> None:
    cut, one, two = peers

    cuts.cut(LAB, cut.name, 1, [])

    assert one.ask("open", two)
    assert two.ask("open", one)


@pytest.mark.root
def test_established_connections_go_silent_and_come_back(peers: list[Peer]) -> None:
    cut, other, _ = peers
    assert cut.ask("open", other)

    cuts.cut(LAB, cut.name, 1, [])

    assert not cut.ask("talk", other)
    cuts.heal(LAB, cut.name)
    assert cut.ask("talk", other)


@pytest.mark.root
def test_two_cut_nodes_do_not_reach_each_other_and_heal_one_by_one(peers: list[Peer]) -> None:
    one, two, other = peers

    cuts.cut(LAB, one.name, 1, [])
    cuts.cut(LAB, two.name, 2, [])

    assert not one.ask("open", two)
    assert cuts.cut_nodes(LAB) == {one.name, two.name}
    cuts.heal(LAB, one.name)
    assert cuts.cut_nodes(LAB) == {two.name}
    assert one.ask("open", other)
    assert not two.ask("open", other)


@pytest.mark.root
def test_the_members_of_a_group_are_its_live_processes(peers: list[Peer]) -> None:
    peer = peers[0]
    assert peer.group is not None

    assert processes.members(peer.group) == {peer.process.pid}


def test_without_root_a_cut_says_that_it_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(PermissionDenied, match="root"):
        cuts.cut(LAB, "manager1", 1, [])
    cuts.heal_all(LAB)
