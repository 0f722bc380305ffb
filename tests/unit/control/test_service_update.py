"""Changing a service through the door: in sequence, once per operation, never its name or mode."""

from __future__ import annotations

import asyncio

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound
from tests.builders import NOW, a_network, a_service
from tests.unit.control.fakes import (
    a_spec,
    created,
    drop_one,
    make_desk,
    scaled,
    updated,
    with_image,
    with_port,
)


async def test_an_update_keeps_the_previous_spec_and_counts() -> None:
    desk = make_desk()
    web = await created(desk, a_spec(image="nginx:1"))

    after = await updated(desk, web, with_image(web, "nginx:2"))

    assert after.spec.task_template.container_spec.image == "nginx:2"
    assert after.previous_spec.task_template.container_spec.image == "nginx:1"
    assert after.spec_version.index == 2
    assert after.version.index > web.version.index


async def test_of_two_writers_from_the_same_version_one_is_refused() -> None:
    desk = make_desk()
    web = await created(desk, a_spec())
    requests = [
        pb.UpdateServiceRequest(
            service_id="web", version=web.version.index, spec=with_image(web, f"nginx:{number}")
        )
        for number in (2, 3)
    ]

    outcomes = await asyncio.gather(
        *(desk.control.update_service(r) for r in requests), return_exceptions=True
    )

    (refused,) = [o for o in outcomes if isinstance(o, BaseException)]
    assert isinstance(refused, Conflict)
    assert refused.message == "update out of sequence"
    stored = desk.store.view.services.by_name("web")
    assert stored is not None
    assert stored.spec_version.index == 2


async def test_an_update_that_is_repeated_is_done_once() -> None:
    desk = make_desk()
    web = await created(desk, a_spec())
    request = pb.UpdateServiceRequest(
        operation_id="once", service_id="web", version=web.version.index, spec=with_image(web, "nginx:2")
    )

    first = await desk.control.update_service(request)
    second = await desk.control.update_service(request)

    assert second == first


async def test_name_and_mode_stay() -> None:
    desk = make_desk()
    web = await created(desk, a_spec())
    as_global = a_spec()
    getattr(as_global.mode, "global").SetInParent()

    with pytest.raises(FailedPrecondition, match=r"^renaming services is not supported$"):
        await updated(desk, web, a_spec("other"))
    with pytest.raises(FailedPrecondition, match=r"^service mode change is not allowed$"):
        await updated(desk, web, as_global)


async def test_an_update_without_name_and_mode_keeps_them() -> None:
    desk = make_desk()
    web = await created(desk, a_spec(mode=pb.ServiceMode(replicated=pb.ReplicatedMode(replicas=3))))

    after = await updated(desk, web, a_spec(name="", image="nginx:2"))

    assert after.spec.name == "web"
    assert after.spec.mode.replicated.replicas == 3


async def test_an_invalid_update_changes_nothing() -> None:
    desk = make_desk()
    web = await created(desk, a_spec())

    with pytest.raises(InvalidArgument, match="is not a valid repository/tag"):
        await updated(desk, web, with_image(web, "NO"))

    assert desk.store.view.services.by_name("web") == web


async def test_an_update_of_an_unknown_service_is_refused() -> None:
    with pytest.raises(NotFound, match=r"^service web not found$"):
        await make_desk().control.update_service(pb.UpdateServiceRequest(service_id="web", spec=a_spec()))


async def test_a_new_template_clears_the_update_status_and_scaling_does_not() -> None:
    web = a_service("web")
    web.update_status.state = pb.UPDATE_STATE_COMPLETED
    desk = make_desk(web)

    after_scaling = await updated(desk, web, scaled(web, 5))
    after_image = await updated(desk, web, with_image(web, "nginx:2"))

    assert after_scaling.update_status.state == pb.UPDATE_STATE_COMPLETED
    assert not after_image.HasField("update_status")


async def test_a_paused_update_is_resumed_by_an_update_that_changes_nothing() -> None:
    web = a_service("web")
    web.update_status.state = pb.UPDATE_STATE_PAUSED
    desk = make_desk(web)

    after = await updated(desk, web, web.spec)

    assert not after.HasField("update_status")
    assert after.spec_version == web.spec_version
    assert not after.HasField("previous_spec")


async def test_an_update_that_changes_nothing_writes_nothing() -> None:
    desk = make_desk()
    web = await created(desk, a_spec())
    before = desk.store.applied_index

    answer = await desk.control.update_service(
        pb.UpdateServiceRequest(service_id="web", version=web.version.index, spec=web.spec)
    )

    assert desk.store.applied_index == before == answer.index


async def test_a_rollback_swaps_the_specs_and_counts_on() -> None:
    desk = make_desk()
    web = await created(desk, a_spec(image="nginx:1"))
    await updated(desk, web, with_image(web, "nginx:2"))

    after = await updated(desk, web, pb.ServiceSpec(), rollback="previous")

    assert after.spec.task_template.container_spec.image == "nginx:1"
    assert after.previous_spec.task_template.container_spec.image == "nginx:2"
    assert after.spec_version.index == 3
    assert after.update_status.state == pb.UPDATE_STATE_ROLLBACK_STARTED
    assert after.update_status.message == "manually requested rollback"
    assert after.update_status.started_at.ToDatetime() == NOW.replace(tzinfo=None)


async def test_there_is_nothing_to_roll_back_to_before_the_first_update() -> None:
    desk = make_desk()
    web = await created(desk, a_spec())

    with pytest.raises(FailedPrecondition, match=f"^service {web.id} does not have a previous spec$"):
        await updated(desk, web, web.spec, rollback="previous")


async def test_an_unknown_rollback_is_refused() -> None:
    desk = make_desk()
    web = await created(desk, a_spec())

    with pytest.raises(InvalidArgument, match="unrecognized rollback option sideways"):
        await updated(desk, web, web.spec, rollback="sideways")


# ---- credentials


async def test_registry_credentials_are_kept_but_never_shown() -> None:
    desk = make_desk()
    spec = a_spec()
    spec.task_template.container_spec.pull_auth = b"hunter2"
    web = await created(desk, spec)

    shown = (await desk.control.get_service(pb.GetServiceRequest(reference="web"))).service
    after = await updated(desk, web, with_image(shown, "nginx:2"))

    assert b"hunter2" not in shown.SerializeToString() + after.SerializeToString()
    stored = desk.store.view.services.get(web.id)
    assert stored is not None
    assert stored.spec.task_template.container_spec.pull_auth == b"hunter2"
    assert stored.previous_spec.task_template.container_spec.pull_auth == b"hunter2"


async def test_sending_back_what_was_read_is_no_change() -> None:
    desk = make_desk()
    spec = a_spec()
    spec.task_template.container_spec.pull_auth = b"hunter2"
    web = await created(desk, spec)
    shown = (await desk.control.get_service(pb.GetServiceRequest(reference="web"))).service

    after = await updated(desk, web, shown.spec)

    assert after.spec_version.index == 1


async def test_an_update_may_keep_the_services_own_port() -> None:
    desk = make_desk()
    web = await created(desk, with_port("web", 8080))
    spec = with_port("web", 8080)
    spec.endpoint_spec.ports.add(target_port=443, published_port=8443)

    after = await updated(desk, web, spec)

    assert [p.published_port for p in after.spec.endpoint_spec.ports] == [8080, 8443]


async def test_an_update_may_not_take_anothers_port() -> None:
    desk = make_desk()
    await created(desk, with_port("web", 8080))
    api = await created(desk, with_port("api", 8081))

    with pytest.raises(InvalidArgument, match="port '8080' is already in use by service 'web'"):
        await updated(desk, api, with_port("api", 8080))


async def test_a_rollback_to_a_network_that_is_gone_is_refused() -> None:
    front = a_network("front")
    desk = make_desk(front)
    web = await created(desk, a_spec(networks=[pb.NetworkAttachmentConfig(target="front")]))
    await updated(desk, web, a_spec())
    await drop_one(desk, pb.Network, front.id)

    with pytest.raises(NotFound, match=f"network {front.id} not found"):
        await updated(desk, web, web.spec, rollback="previous")


async def test_an_update_in_dockers_older_network_field_is_one_of_the_template() -> None:
    front, back = a_network("front"), a_network("back")
    desk = make_desk(front, back)
    web = await created(desk, a_spec(networks=[pb.NetworkAttachmentConfig(target="front")]))

    after = await updated(desk, web, a_spec(networks=[pb.NetworkAttachmentConfig(target="back")]))

    assert [n.target for n in after.spec.task_template.networks] == [back.id]


async def test_an_update_of_a_version_that_never_was_is_out_of_sequence() -> None:
    desk = make_desk(a_service("web"))

    with pytest.raises(Conflict, match=r"^update out of sequence$"):
        await desk.control.update_service(
            pb.UpdateServiceRequest(service_id="web", version=999, spec=a_spec())
        )
