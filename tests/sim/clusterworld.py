"""A whole cluster in one process: real managers and agents, simulated machines and network.

`ClusterWorld` makes the hosts, forms the cluster and breaks and heals things; what is
asked of the cluster comes from `users`, what must hold is judged by `judge` at every
moment and by `ending` when everything is whole again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from swarmlet.api import pb
from swarmlet.ca.root import RootCA
from swarmlet.control.initial import new_node, write_initial_cluster
from swarmlet.raft.engine import RaftSettings
from swarmlet.store.store import Transaction
from tests.sim.engine import Engine
from tests.sim.hosts import EPOCH, Daemon, Host, SimManager
from tests.sim.judge import Judge
from tests.sim.network import Network
from tests.sim.processes import Process

POLL_SECONDS = 0.05
ZONES = ("a", "b")
_root: list[RootCA] = []


class ClusterWorld:
    """Managers m0, m1, ... and workers w0, w1, ...; made on the world's loop."""

    def __init__(
        self,
        seed: int | str,
        *,
        managers: int = 3,
        workers: int = 0,
        delay_seconds: float = 0.005,
        sync_seconds: float = 0.002,
        snapshot_entries: int = 10_000,
    ) -> None:
        self.rng = random.Random(f"world {seed}")
        self.loop = asyncio.get_running_loop()
        self.network = Network(random.Random(f"network {seed}"), delay_seconds=delay_seconds)
        self.raft_settings = RaftSettings(snapshot_entries=snapshot_entries)
        self.sync_seconds = sync_seconds
        self.manager_names = [f"m{i}" for i in range(managers)]
        self.hosts: dict[str, Host] = {}
        self.judge = Judge(self.hosts, calm_since=lambda: self.calm_since)
        self.is_formed = False
        self.is_peaceful = False
        self.calm_since = 0.0
        self._dead: list[Process] = []
        self._processes: list[Process] = []
        for name in [*self.manager_names, *(f"w{i}" for i in range(workers))]:
            engine = Engine(name, is_peaceful=lambda: self.is_peaceful, observer=self.judge)
            rng = random.Random(f"{name} {seed}")
            self.hosts[name] = Host(name, name in self.manager_names, engine, rng)
            self.hosts[name].disk.found(self.manager_names)

    # ---- beginning

    async def form(self) -> None:
        """Starts everything; returns when every node is READY."""
        for name in self.manager_names:
            self.start(name)
        await self.until(lambda: self.leader() is not None, 20)
        leader = self.leader()
        assert leader is not None
        await self.in_process(leader.address, lambda: self._write_first_objects(leader))
        self.is_formed = True
        for name, host in self.hosts.items():
            if host.daemon is None:
                self.start(name)
            else:
                host.daemon.start_agent()
        await self.until(self._all_ready, 20)
        self.calm_since = self.time()

    async def _write_first_objects(self, leader: SimManager) -> None:
        if not _root:
            _root.append(RootCA.create(EPOCH))
        await write_initial_cluster(
            leader.store,
            cluster_id="simulated",
            node_id=leader.address,
            hostname=leader.address,
            address=leader.address,
            root_ca=_root[0],
            rng=random.Random(0),
            options=pb.SwarmInitRequest(),
        )

        def write(transaction: Transaction) -> None:
            for number, host in enumerate(self.hosts.values()):
                stored = transaction.get(pb.Node, host.name)
                role = pb.NODE_ROLE_MANAGER if host.is_manager else pb.NODE_ROLE_WORKER
                node = new_node(
                    host.name,
                    role,
                    availability=pb.NODE_AVAILABILITY_ACTIVE,
                    hostname=host.name,
                    address=host.name,
                )
                node.spec.labels["zone"] = ZONES[number % len(ZONES)]
                if stored is None:
                    transaction.create(node)
                else:
                    node.version.CopyFrom(stored.version)
                    transaction.update(node)

        await leader.store.update(write)

    def _all_ready(self) -> bool:
        nodes = list(self.judge.truth.view.nodes)
        return len(nodes) == len(self.hosts) and all(n.status.state == pb.NODE_STATE_READY for n in nodes)

    # ---- life and death

    def process(self, host: str) -> Process:
        """A process that is not known to the network: for users."""
        process = Process(host, rng=random.Random(self.rng.random()), failed=self._failed)
        self._processes.append(process)
        return process

    def start(self, name: str) -> None:
        host = self.hosts[name]
        if host.daemon is not None:
            return
        self.judge.note(f"{name} starts its daemon")
        process = self.process(name)
        host.boots += 1
        self.network.processes[name] = process
        host.daemon = Daemon(self, host, process)
        host.daemon.start()

    def _failed(self, what: str, error: BaseException) -> None:
        self.judge.violation(f"{what}: {error!r}")

    def crash(self, name: str, *, power: bool = False) -> None:
        """Kills the daemon: what it had not synced is lost. With the power, all tasks go too."""
        self.judge.note(f"crash of {name}{' with its power' if power else ''}")
        host = self.hosts[name]
        self.disturb()
        if host.daemon is not None:
            host.daemon.process.kill()
            self.network.process_died(host.daemon.process, is_silent=power)
            host.daemon = None
        if power:
            self.judge.lost_power(name)
            host.engine.lose_power()
            for task in host.journal.load():
                # Its files are not synced.
                if self.rng.random() < 0.3:
                    host.journal.remove(task.id)

    def pause(self, name: str) -> None:
        self.judge.note(f"pause of {name}")
        daemon = self.hosts[name].daemon
        if daemon is not None:
            daemon.process.pause()
        self.disturb()

    def resume(self, name: str) -> None:
        self.judge.note(f"{name} goes on")
        daemon = self.hosts[name].daemon
        if daemon is not None:
            daemon.process.resume()

    def slow_down(self, name: str, seconds: float) -> None:
        self.judge.note(f"{name} waits {seconds} s for each turn")
        daemon = self.hosts[name].daemon
        if daemon is not None:
            daemon.process.slow_down(seconds)
        self.disturb()

    def cut_off(self, name: str, others: list[str]) -> None:
        self.judge.note(f"{name} cut off from {', '.join(others)}")
        for other in others:
            self.network.cut(name, other)
            self.network.cut(other, name)
        self.disturb()

    def reconnect(self, name: str, others: list[str]) -> None:
        self.judge.note(f"{name} reconnected to {', '.join(others)}")
        for other in others:
            self.network.heal(name, other)
            self.network.heal(other, name)

    def jump(self, name: str, by: timedelta) -> None:
        """Sets the wall clock of a host."""
        self.judge.note(f"clock of {name} jumps by {by}")
        self.judge.clock_is_set()
        self.hosts[name].clock_offset += by

    def disturb(self) -> None:
        """Something is broken from now on, until `heal` or as long as `disturbed_for` says."""
        self.calm_since = float("inf")

    @contextmanager
    def disturbed_for(self, seconds: float) -> Iterator[None]:
        """What is broken in this block is whole again after so long."""
        before = self.calm_since
        yield
        self.calm_since = max(before, self.time() + seconds)

    def heal(self) -> None:
        """Everything runs and reaches everything; clocks stay as they are."""
        self.judge.note("all is healed")
        self.network.heal_all()
        for name in self.hosts:
            self.start(name)
            self.resume(name)
            self.slow_down(name, 0.0)
        self.calm_since = self.time()

    # ---- looking

    def time(self) -> float:
        return self.loop.time()

    def managers(self) -> list[SimManager]:
        daemons = [host.daemon for host in self.hosts.values()]
        return [d.manager for d in daemons if d is not None and d.manager is not None]

    def leader(self) -> SimManager | None:
        leading = [m for m in self.managers() if m.raft.is_leader]
        return max(leading, key=lambda m: m.raft.term, default=None)

    def applied(self, name: str, index: int, data: bytes) -> None:
        self.judge.applied(name, index, data)

    def observe(self) -> None:
        for manager in self.managers():
            if manager.raft.is_leader:
                self.judge.led(manager.address, manager.raft.term)

    async def until(
        self, what: Callable[[], bool], seconds: float, *, poll_seconds: float = POLL_SECONDS
    ) -> bool:
        end = self.time() + seconds
        while not what():
            if self.time() >= end:
                return False
            await asyncio.sleep(poll_seconds)
            self.observe()
        return True

    async def in_process(self, host: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """Runs `work` in a host's daemon and returns what it returns."""
        daemon = self.hosts[host].daemon
        assert daemon is not None
        return await run_in(daemon.process, work)

    # ---- the end

    def close(self) -> None:
        self.judge.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with suppress(Exception):
                process.dispose()


async def run_in(process: Process, work: Callable[[], Awaitable[Any]]) -> Any:
    """Runs `work` in a process; for ever, when that dies."""
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main() -> None:
        try:
            result = await work()
        except Exception as error:
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(result)

    process.spawn(main, "call")
    return await done
