"""The cluster through the door, and its first objects."""

from __future__ import annotations

import random

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import Conflict, InvalidArgument, Unavailable
from swarmlet.ca import tokens
from swarmlet.ca.root import RootCA
from swarmlet.control.initial import write_initial_cluster
from swarmlet.store.store import Store
from tests.builders import NOW, make_store
from tests.unit.control.fakes import Desk, make_desk

HOUR_NS = 3600 * 10**9


async def initialise(store: Store, **options: object) -> pb.Cluster:
    return await write_initial_cluster(
        store,
        cluster_id="c1",
        node_id="one",
        hostname="alpha",
        address="10.0.0.1:2377",
        root_ca=RootCA.create(NOW),
        rng=random.Random(1),
        options=pb.SwarmInitRequest(**options),  # type: ignore[arg-type]
    )


async def a_swarm() -> Desk:
    desk = make_desk()
    await initialise(desk.store)
    return desk


async def got(desk: Desk) -> pb.Cluster:
    return (await desk.control.get_cluster(pb.GetClusterRequest())).cluster


# ---- the first objects


async def test_a_new_cluster_has_the_defaults() -> None:
    cluster = await initialise(make_store())

    assert cluster.spec.name == "default"
    assert cluster.spec.dispatcher.heartbeat_period_ns == 10**9
    assert cluster.spec.ca_config.node_cert_expiry_ns == 90 * 24 * HOUR_NS
    assert cluster.spec.orchestration.task_history_retention_limit == 5
    assert list(cluster.default_addr_pool) == ["10.0.0.0/8"]
    assert (cluster.subnet_size, cluster.data_path_port) == (24, 4789)
    assert cluster.tls_info.trust_root.encode() == cluster.root_ca.certificate_pem
    assert b"swarm-ca" in cluster.tls_info.cert_issuer_subject
    assert cluster.tls_info.cert_issuer_public_key


async def test_the_join_tokens_of_a_new_cluster_give_the_two_roles() -> None:
    cluster = await initialise(make_store())

    assert tokens.role_for(cluster.join_tokens.worker, cluster.join_tokens) == pb.NODE_ROLE_WORKER
    assert tokens.role_for(cluster.join_tokens.manager, cluster.join_tokens) == pb.NODE_ROLE_MANAGER


async def test_the_first_node_is_a_manager_that_has_not_been_heard_of() -> None:
    store = make_store()

    await initialise(store, availability=pb.NODE_AVAILABILITY_DRAIN)

    node = store.view.nodes.get("one")
    assert node is not None
    assert node.spec.role == node.certified_role == pb.NODE_ROLE_MANAGER
    assert node.spec.availability == pb.NODE_AVAILABILITY_DRAIN
    assert node.status.state == pb.NODE_STATE_UNKNOWN
    assert node.status.addr == "10.0.0.1"
    assert node.description.hostname == "alpha"
    assert node.manager_status.addr == "10.0.0.1:2377"


async def test_what_the_operator_chose_is_taken() -> None:
    cluster = await initialise(
        make_store(), cert_expiry_ns=HOUR_NS, task_history_limit=0, dispatcher_heartbeat_ns=7
    )

    assert cluster.spec.ca_config.node_cert_expiry_ns == HOUR_NS
    assert cluster.spec.orchestration.task_history_retention_limit == 0
    assert cluster.spec.dispatcher.heartbeat_period_ns == 7


async def test_an_init_that_is_repeated_keeps_the_first_cluster() -> None:
    store = make_store()
    first = await initialise(store)

    second = await initialise(store)

    assert second == first


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cert_expiry_ns": HOUR_NS - 1}, "minimum certificate expiry time is: 1h0m0s"),
        ({"dispatcher_heartbeat_ns": -1}, "heartbeat time period cannot be a negative duration"),
    ],
)
async def test_an_init_with_impossible_options_is_refused(options: dict[str, int], text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{text}$"):
        await initialise(make_store(), **options)


# ---- reads


async def test_the_keys_of_the_root_never_leave() -> None:
    desk = await a_swarm()
    stored = desk.store.view.cluster()
    assert stored is not None
    changed = pb.Cluster()
    changed.CopyFrom(stored)
    changed.spec.ca_config.signing_ca_key = "signing-key"
    await desk.store.update(lambda transaction: transaction.update(changed))

    shown = await got(desk)

    assert not shown.HasField("root_ca")
    assert stored.root_ca.private_key_pem not in shown.SerializeToString()
    assert b"signing-key" not in shown.SerializeToString()
    assert shown.join_tokens == stored.join_tokens


async def test_a_manager_without_a_cluster_object_says_to_wait() -> None:
    with pytest.raises(Unavailable, match="does not know the cluster yet"):
        await got(make_desk())


# ---- changes


async def test_the_spec_is_changed_and_the_root_kept() -> None:
    desk = await a_swarm()
    cluster = await got(desk)
    cluster.spec.orchestration.task_history_retention_limit = 2

    answer = await desk.control.update_cluster(
        pb.UpdateClusterRequest(version=cluster.version.index, spec=cluster.spec)
    )

    assert answer.cluster.spec.orchestration.task_history_retention_limit == 2
    assert not answer.cluster.HasField("root_ca")
    stored = desk.store.view.cluster()
    assert stored is not None
    assert stored.root_ca.private_key_pem


async def test_a_signing_key_survives_an_update_by_somebody_who_cannot_see_it() -> None:
    desk = await a_swarm()
    cluster = await got(desk)
    cluster.spec.ca_config.signing_ca_key = "signing-key"
    cluster.spec.ca_config.signing_ca_cert = "signing-cert"
    await desk.control.update_cluster(
        pb.UpdateClusterRequest(version=cluster.version.index, spec=cluster.spec)
    )
    shown = await got(desk)

    await desk.control.update_cluster(pb.UpdateClusterRequest(version=shown.version.index, spec=shown.spec))

    stored = desk.store.view.cluster()
    assert stored is not None
    assert stored.spec.ca_config.signing_ca_key == "signing-key"
    assert stored.spec.ca_config.signing_ca_cert == "signing-cert"


async def test_a_token_is_rotated_alone_and_the_old_one_means_nothing() -> None:
    desk = await a_swarm()
    before = await got(desk)

    answer = await desk.control.update_cluster(
        pb.UpdateClusterRequest(version=before.version.index, rotate_worker_token=True)
    )

    after = answer.cluster
    assert after.join_tokens.manager == before.join_tokens.manager
    assert tokens.role_for(before.join_tokens.worker, after.join_tokens) is None
    assert tokens.role_for(after.join_tokens.worker, after.join_tokens) == pb.NODE_ROLE_WORKER
    assert after.spec == before.spec


async def test_a_token_does_not_follow_from_the_generator_of_the_ids() -> None:
    rotated = set()
    for _ in range(2):
        desk = await a_swarm()
        answer = await desk.control.update_cluster(
            pb.UpdateClusterRequest(version=1, rotate_worker_token=True)
        )
        rotated.add(answer.cluster.join_tokens.worker.rpartition("-")[2])

    assert len(rotated) == 2


async def test_a_rotation_that_is_repeated_rotates_once() -> None:
    desk = await a_swarm()
    cluster = await got(desk)
    request = pb.UpdateClusterRequest(
        operation_id="once", version=cluster.version.index, rotate_manager_token=True
    )

    first = await desk.control.update_cluster(request)
    second = await desk.control.update_cluster(request)

    assert second == first


async def test_a_cluster_update_from_an_old_version_is_refused() -> None:
    desk = await a_swarm()

    with pytest.raises(Conflict, match=r"^update out of sequence$"):
        await desk.control.update_cluster(pb.UpdateClusterRequest(version=99, rotate_worker_token=True))


async def test_a_cluster_update_that_changes_nothing_writes_nothing() -> None:
    desk = await a_swarm()
    cluster = await got(desk)

    answer = await desk.control.update_cluster(
        pb.UpdateClusterRequest(version=cluster.version.index, spec=cluster.spec)
    )

    assert answer.index == desk.store.applied_index == cluster.version.index


async def test_the_cluster_keeps_its_name() -> None:
    with pytest.raises(InvalidArgument, match=r"^modification of cluster name is not allowed$"):
        await (await a_swarm()).control.update_cluster(
            pb.UpdateClusterRequest(spec=pb.ClusterSpec(name="other"))
        )
