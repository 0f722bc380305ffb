"""The store against a model of it, under random histories.

A leader's store takes writes, a follower applies the same log at its own pace, a
third is restored from snapshots in between, and a watcher copies the leader from
what it is told. The model is a dict.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swarmlet.api import pb
from swarmlet.api.errors import AlreadyExists, Conflict, NotFound, SwarmletError
from swarmlet.store import watch
from swarmlet.store.store import Store, Transaction
from swarmlet.store.tables import StoredObject, Tables, slot_key
from swarmlet.store.watch import Change, Watcher, WatchOverflow
from tests.builders import NOW, LocalProposer

WATCHED_CHANGES_MAX = 6
NAMES = ("a", "b", "c")
SERVICES = ("s1", "s2", "s3")
NODES = ("", "n1", "n2")
NETWORKS = ("net1", "net2")
STATES = (pb.TASK_STATE_NEW, pb.TASK_STATE_RUNNING, pb.TASK_STATE_FAILED)


@dataclass(frozen=True)
class Thing:
    """A service or a task, reduced to what the store looks at."""

    kind: Any
    id: str
    name: str = ""
    networks: tuple[str, ...] = ()
    service: str = ""
    slot: int = 0
    node: str = ""
    state: pb.TaskState.ValueType = pb.TASK_STATE_NEW
    version: int = 0

    def message(self) -> Any:
        version = pb.Version(index=self.version)
        if self.kind is pb.Service:
            service = pb.Service(id=self.id, version=version, spec=pb.ServiceSpec(name=self.name))
            for target in self.networks:
                service.spec.task_template.networks.add(target=target)
            return service
        return pb.Task(
            id=self.id,
            version=version,
            service_id=self.service,
            slot=self.slot,
            node_id=self.node,
            status=pb.TaskStatus(state=self.state),
            desired_state=self.state,
        )


Key = tuple[type[StoredObject], str]
State = dict[Key, Thing]
Step = tuple[str, Thing]

things = st.builds(
    Thing,
    kind=st.just(pb.Service),
    id=st.sampled_from(SERVICES),
    name=st.sampled_from(NAMES),
    networks=st.lists(st.sampled_from(NETWORKS), max_size=3).map(tuple),
) | st.builds(
    Thing,
    kind=st.just(pb.Task),
    id=st.sampled_from(["t1", "t2", "t3", "t4"]),
    service=st.sampled_from(SERVICES),
    slot=st.integers(0, 2),
    node=st.sampled_from(NODES),
    state=st.sampled_from(STATES),
)
steps = st.lists(st.tuples(st.sampled_from(["create", "update", "delete"]), things), min_size=1, max_size=4)


def after(state: State, wanted: list[Step]) -> State:
    """The model: what one transaction makes of a state. Raises what the store should raise."""
    result = dict(state)
    for verb, thing in wanted:
        key = (thing.kind, thing.id)
        if verb != "create" and key not in result:
            raise NotFound
        if verb == "create" and key in result:
            raise AlreadyExists
        if verb == "delete":
            del result[key]
            continue
        if thing.name and any(o.name == thing.name and o.id != thing.id for o in result.values()):
            raise AlreadyExists
        result[key] = thing
    return result


def run_steps(tx: Transaction, wanted: list[Step]) -> None:
    for verb, thing in wanted:
        if verb == "delete":
            tx.delete(thing.kind, thing.id)
        elif verb == "create":
            tx.create(thing.message())
        else:
            current = tx.get(thing.kind, thing.id)
            version = current.version.index if current is not None else 0
            tx.update(replace(thing, version=version).message())


def contents(view: Tables) -> dict[Key, StoredObject]:
    return {(type(value), value.id): value for table in view.all_tables() for value in table}


def new_store() -> Store:
    return Store(now=lambda: NOW, rng=random.Random(0))


class StoreAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.leader = new_store()
        self.proposer = LocalProposer(self.leader)
        self.leader.attach(self.proposer)
        self.follower = new_store()
        self.restored = new_store()
        self.model: State = {}
        self.delayed: list[tuple[bytes, list[pb.StoreChange]]] = []
        self.copy: dict[Key, StoredObject] = {}
        self.last_seen_index = 0

    @initialize()
    def start_watching(self) -> None:
        self.watching = self.leader.watching()
        self.watcher: Watcher = self.watching.__enter__()

    def teardown(self) -> None:
        self.follower_catches_up(len(self.proposer.log))
        assert self.follower.snapshot()() == self.leader.snapshot()()
        self.follow(self.restored, len(self.proposer.log))
        assert self.restored.snapshot()() == self.leader.snapshot()()
        self.watcher_reads()
        self.watching.__exit__(None, None, None)
        self.runner.close()

    # ---- what may happen

    @rule(wanted=steps)
    def update(self, wanted: list[Step]) -> None:
        expected = self.outcome_of(lambda: after(self.model, wanted))
        before = self.leader.applied_index

        got = self.outcome_of(lambda: self.runner.run(self.leader.update(lambda tx: run_steps(tx, wanted))))

        assert type(got) is type(expected) or (got is None and isinstance(expected, dict)), (got, expected)
        if isinstance(expected, dict):
            self.take_over(expected, changed_at=before + 1)

    @rule(units=st.lists(steps, min_size=1, max_size=4))
    def batch(self, units: list[list[Step]]) -> None:
        expected = dict(self.model)
        for unit in units:
            try:
                expected = after(expected, unit)
            except SwarmletError:
                # Left out.
                continue
        before = self.leader.applied_index

        self.runner.run(self.leader.batch([partial(run_steps, wanted=unit) for unit in units]))

        self.take_over(expected, changed_at=before + 1)

    @rule(wanted=steps)
    def propose_late(self, wanted: list[Step]) -> None:
        """A transaction is made now and reaches the log later."""
        tx = Transaction(self.leader.view, lambda: "unused")
        try:
            run_steps(tx, wanted)
        except SwarmletError:
            return
        entry = pb.Transaction(
            operation_id=f"late{len(self.delayed)}.{len(self.proposer.log)}", changes=tx.changes
        )
        entry.time.FromDatetime(NOW)
        self.delayed.append((entry.SerializeToString(), tx.changes))

    @precondition(lambda self: self.delayed)
    @rule(data=st.data())
    def late_proposal_arrives(self, data: st.DataObject) -> None:
        entry, changes = self.delayed.pop(data.draw(st.integers(0, len(self.delayed) - 1)))
        expected = self.model_after_entry(changes)

        refused = self.proposer.apply(entry)

        assert (refused is None) == (expected is not None), refused
        assert refused is None or isinstance(refused, Conflict | AlreadyExists)
        if expected is not None:
            self.take_over(expected, changed_at=self.leader.applied_index)

    @precondition(lambda self: self.proposer.log)
    @rule(data=st.data())
    def entry_arrives_again(self, data: st.DataObject) -> None:
        """The same operation a second time: what was applied is not applied again."""
        _, entry = data.draw(st.sampled_from(self.proposer.log))
        operation_id = pb.Transaction.FromString(entry).operation_id
        if self.leader.operation_index(operation_id) is None:
            return

        assert self.proposer.apply(entry) is None

    @rule(entries=st.integers(1, 10))
    def follower_catches_up(self, entries: int) -> None:
        self.follow(self.follower, self.follower.applied_index + entries)

    @rule()
    def snapshot_is_restored_elsewhere(self) -> None:
        encode = self.leader.snapshot()
        data = encode()
        self.restored.restore(self.leader.applied_index, data)

        assert self.restored.snapshot()() == data
        assert contents(self.restored.view) == contents(self.leader.view)
        assert list(contents(self.restored.view)) == list(contents(self.leader.view))

    @rule()
    def leader_is_restored(self) -> None:
        self.leader.restore(self.leader.applied_index, self.leader.snapshot()())

    @rule()
    def watcher_reads(self) -> None:
        try:
            changes = self.runner.run(next_or_nothing(self.watcher))
        except WatchOverflow:
            self.copy = contents(self.leader.view)
        else:
            for change in changes:
                self.replay(change)
        assert self.copy == contents(self.leader.view)

    # ---- what always holds

    @invariant()
    def leader_holds_what_the_model_holds(self) -> None:
        held = contents(self.leader.view)
        assert held.keys() == self.model.keys()
        for key, thing in self.model.items():
            value = held[key]
            assert value.version.index == thing.version
            bare = type(value)()
            bare.MergeFrom(value)  # type: ignore[arg-type]
            bare.ClearField("created_at")
            bare.ClearField("updated_at")
            assert bare == thing.message()

    @invariant()
    def indexes_are_what_a_scan_finds(self) -> None:
        for store in (self.leader, self.follower, self.restored):
            check_indexes(store.view)

    # ---- helpers

    def take_over(self, expected: State, changed_at: int) -> None:
        for key, thing in expected.items():
            if self.model.get(key) is not thing:
                expected[key] = replace(thing, version=changed_at)
        self.model = expected

    def model_after_entry(self, changes: list[pb.StoreChange]) -> State | None:
        """What a late entry makes of the model; None when something it relies on has changed."""
        result = dict(self.model)
        for change in changes:
            value = change.object.service if change.object.HasField("service") else change.object.task
            key = (type(value), value.id)
            current = self.model.get(key)
            if change.kind == pb.CHANGE_KIND_CREATE:
                if current is not None:
                    return None
            elif current is None or current.version != change.expected_version:
                return None
            result.pop(key, None)
            if change.kind != pb.CHANGE_KIND_DELETE:
                result[key] = thing_of(value)
        names = [thing.name for thing in result.values() if thing.name]
        return result if len(names) == len(set(names)) else None

    def follow(self, store: Store, up_to: int) -> None:
        for index, entry in self.proposer.log[store.applied_index : up_to]:
            store.apply(index, entry)

    def replay(self, change: Change) -> None:
        """Every change must continue what the watcher already knows."""
        assert change.index >= self.last_seen_index
        self.last_seen_index = change.index
        key = (type(change.current), change.current.id)
        assert self.copy.get(key) == change.old
        assert (change.old is None) == (change.kind == pb.CHANGE_KIND_CREATE)
        if change.new is None:
            assert change.kind == pb.CHANGE_KIND_DELETE
            del self.copy[key]
        else:
            self.copy[key] = change.new

    @staticmethod
    def outcome_of(act: Callable[[], object]) -> object:
        try:
            return act()
        except SwarmletError as error:
            return error


def thing_of(value: pb.Service | pb.Task) -> Thing:
    if isinstance(value, pb.Service):
        networks = tuple(n.target for n in value.spec.task_template.networks)
        return Thing(pb.Service, value.id, name=value.spec.name, networks=networks)
    return Thing(
        pb.Task,
        value.id,
        service=value.service_id,
        slot=value.slot,
        node=value.node_id,
        state=value.status.state,
    )


async def next_or_nothing(watcher: Watcher) -> list[Change]:
    try:
        async with asyncio.timeout(0):
            return await watcher.next()
    except TimeoutError:
        return []


def check_indexes(view: Tables) -> None:
    """Compares every index with a scan, for every key there may be."""
    for name in NAMES:
        holder = view.services.by_name(name)
        assert ([] if holder is None else [holder]) == [s for s in view.services if s.spec.name == name]
    for network in NETWORKS:
        check_index(
            {s.id for s in view.services.find("network", network)},
            view.services.count("network", network),
            {s.id for s in view.services if network in [n.target for n in s.spec.task_template.networks]},
        )
    keys: dict[str, tuple[object, ...]] = {
        "service": SERVICES,
        "node": NODES,
        "state": STATES,
        "desired_state": STATES,
        "slot": tuple((s, slot, node) for s in SERVICES for slot in range(3) for node in NODES),
    }
    key_of: dict[str, Callable[[pb.Task], object]] = {
        "service": lambda t: t.service_id,
        "node": lambda t: t.node_id or None,
        "state": lambda t: t.status.state,
        "desired_state": lambda t: t.desired_state,
        "slot": slot_key,
    }
    for index, possible in keys.items():
        for key in possible:
            check_index(
                {t.id for t in view.tasks.find(index, key)},
                view.tasks.count(index, key),
                {t.id for t in view.tasks if key_of[index](t) == key},
            )


def check_index(found: set[str], count: int, expected: set[str]) -> None:
    assert found == expected
    assert count == len(expected)


@pytest.fixture(autouse=True, scope="module")
def small_watch_queues() -> object:
    with patch.object(watch, "QUEUE_CHANGES_MAX", WATCHED_CHANGES_MAX):
        yield


StoreAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStoreAgainstModel = StoreAgainstModel.TestCase
