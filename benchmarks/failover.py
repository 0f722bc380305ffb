"""How long the cluster takes no writes when its leader loses power, and whether any acknowledged one is lost.

Four writers create services and change their labels without a pause while the leader is
killed and started again, round after round. An operation whose outcome is unknown is
repeated under the same operation id, as any client may. At the end every manager must
have every write that was acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from dataclasses import dataclass, field
from time import monotonic

from benchmarks.harness import Report, fresh_lab, run, service_spec, until
from swarmlet.api import pb
from swarmlet.api.errors import AlreadyExists, Conflict, SwarmletError
from swarmlet.lab.client import NodeClient, told
from swarmlet.lab.cluster import Lab

WRITES_PER_SERVICE = 25
CALL_SECONDS_MAX = 2.0
PAUSE_SECONDS = 0.005
CALM_SECONDS = 0.5


@dataclass
class Writes:
    acknowledged: dict[str, int] = field(default_factory=dict)
    """By service name, the number in its label after the last acknowledged write."""
    attempted: dict[str, int] = field(default_factory=dict)
    count: int = 0
    acks: list[float] = field(default_factory=list)
    """When each acknowledged call was answered, by the monotonic clock."""


class Writer:
    """Writes one thing after the other, to whichever manager takes it."""

    def __init__(self, lab: Lab, number: int, writes: Writes) -> None:
        self._clients = [NodeClient(node.socket) for node in lab.layout.managers]
        self._at = number % len(self._clients)
        self._number = number
        self._writes = writes

    async def write(self, stop: asyncio.Event) -> None:
        serial = 0
        try:
            while not stop.is_set():
                await self._one_service(f"writer{self._number}-{serial}", stop)
                serial += 1
        finally:
            for client in self._clients:
                await client.close()

    async def _one_service(self, name: str, stop: asyncio.Event) -> None:
        spec = service_spec(name, ["none", "true"], replicas=0)
        for number in range(WRITES_PER_SERVICE):
            if stop.is_set():
                return
            spec.labels["number"] = str(number)
            self._writes.attempted[name] = number
            if not await self._acknowledged(spec, f"{name}-{number}", number == 0, stop):
                return
            self._writes.acknowledged[name] = number
            self._writes.count += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _acknowledged(
        self, spec: pb.ServiceSpec, operation: str, creates: bool, stop: asyncio.Event
    ) -> bool:
        """Repeats one operation until it is acknowledged; False when stopped before."""
        while not stop.is_set():
            try:
                await (self._create if creates else self._update)(spec, operation)
            except SwarmletError as error:
                if creates and isinstance(error, AlreadyExists):
                    raise  # the same operation id must have been recognised
                self._at = (self._at + 1) % len(self._clients)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self._writes.acks.append(monotonic())
            return True
        return False

    async def _create(self, spec: pb.ServiceSpec, operation: str) -> None:
        request = pb.CreateServiceRequest(operation_id=operation, spec=spec)
        await told(self._clients[self._at].control.CreateService(request, timeout=CALL_SECONDS_MAX))

    async def _update(self, spec: pb.ServiceSpec, operation: str) -> None:
        control = self._clients[self._at].control
        got = await told(
            control.GetService(pb.GetServiceRequest(reference=spec.name), timeout=CALL_SECONDS_MAX)
        )
        request = pb.UpdateServiceRequest(
            operation_id=operation, service_id=got.service.id, version=got.service.version.index, spec=spec
        )
        with contextlib.suppress(Conflict):
            await told(control.UpdateService(request, timeout=CALL_SECONDS_MAX))
            return
        # Somebody changed it between: only this writer does, so it was this very operation.
        got = await told(
            control.GetService(pb.GetServiceRequest(reference=spec.name), timeout=CALL_SECONDS_MAX)
        )
        if got.service.spec.labels["number"] != spec.labels["number"]:
            raise Conflict(f"{spec.name} was read at an old version")


async def measure(options: argparse.Namespace, report: Report) -> None:
    writes = Writes()
    stop = asyncio.Event()
    async with fresh_lab() as lab:
        async with asyncio.TaskGroup() as writers:
            for number in range(options.writers):
                writers.create_task(Writer(lab, number, writes).write(stop))
            pauses = [await _round(lab, writes) for _ in range(options.rounds)]
            stop.set()
        names = [node.name for node in lab.layout.managers]
        await lab.wait_ready(names)
        lost = {name: await _lost(lab, name, writes) for name in names}
    report.spread("leader killed: first accepted write", pauses, p50=1.0, worst=2.5)
    report.figure("writes acknowledged", writes.count, at_least=options.least_writes)
    for name in names:
        report.figure(f"acknowledged writes missing on {name}", lost[name], at_most=0)


async def _round(lab: Lab, writes: Writes) -> float:
    """Kills the leader once; returns the seconds from then to the first write that was accepted after."""
    await lab.wait_ready([node.name for node in lab.layout.managers])
    before = writes.count
    await until(lambda: writes.count >= before + 20, look_seconds=PAUSE_SECONDS)
    leader = await lab.leader()
    seen = len(writes.acks)
    began = monotonic()
    await lab.kill(leader)
    dead = monotonic()

    def accepted() -> list[float]:
        return [answered for answered in writes.acks[seen:] if answered > dead]

    await until(lambda: bool(accepted()), look_seconds=PAUSE_SECONDS)
    took = accepted()[0] - began
    await lab.start(leader)
    await asyncio.sleep(CALM_SECONDS)
    return took


async def _lost(lab: Lab, name: str, writes: Writes) -> int:
    """How many acknowledged writes this manager does not have, once it had time to catch up."""
    missing = 0
    async with lab.connect(name) as client:
        for _ in range(20):
            services = {
                s.spec.name: int(s.spec.labels["number"]) for s in await client.services(timeout=10.0)
            }
            missing = sum(
                services.get(service, -1) < number for service, number in writes.acknowledged.items()
            )
            invented = [n for n, number in services.items() if number > writes.attempted.get(n, -1)]
            if invented:
                raise AssertionError(f"{name} has writes that nobody made: {invented}")
            if not missing:
                break
            await asyncio.sleep(0.25)
    return missing


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="how often the leader is killed")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--least-writes", type=int, default=2000)
    return run("failover", measure, parser)


if __name__ == "__main__":
    raise SystemExit(main())
