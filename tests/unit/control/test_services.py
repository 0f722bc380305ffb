"""Services through the door: created once, changed in sequence, rolled back, removed, listed."""

from __future__ import annotations

import asyncio
import random
import re

import pytest

from swarmlet.api import pb
from swarmlet.api.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    NotLeader,
)
from swarmlet.api.ids import is_id
from swarmlet.control.names import invent_name
from swarmlet.control.service_spec import validate_service_spec
from tests.builders import (
    a_config,
    a_global_service,
    a_network,
    a_node,
    a_secret,
    a_service,
    a_task,
)
from tests.unit.control.fakes import a_spec, created, drop_one, make_desk, with_port

# ---- create


async def test_a_created_service_is_stored_with_its_defaults() -> None:
    desk = make_desk()

    answer = await desk.control.create_service(pb.CreateServiceRequest(spec=a_spec()))

    service = desk.store.view.services.get(answer.service_id)
    assert service is not None
    assert is_id(service.id)
    assert service.spec.mode.replicated.replicas == 1
    assert service.spec_version.index == 1
    assert service.version.index == answer.index == desk.store.applied_index


async def test_a_create_that_is_repeated_makes_one_service_and_gets_the_same_answer() -> None:
    desk = make_desk()
    request = pb.CreateServiceRequest(operation_id="once", spec=a_spec())

    first = await desk.control.create_service(request)
    second = await desk.control.create_service(request)

    assert second == first
    assert len(desk.store.view.services) == 1


async def test_a_create_repeated_after_the_removal_does_not_bring_the_service_back() -> None:
    desk = make_desk()
    request = pb.CreateServiceRequest(operation_id="once", spec=a_spec())
    first = await desk.control.create_service(request)
    await desk.control.remove_service(pb.RemoveServiceRequest(service_id="web"))

    second = await desk.control.create_service(request)

    assert second == first
    assert not len(desk.store.view.services)


async def test_creates_of_one_operation_at_the_same_time_make_one_service() -> None:
    desk = make_desk()
    request = pb.CreateServiceRequest(operation_id="once", spec=a_spec())

    answers = await asyncio.gather(*(desk.control.create_service(request) for _ in range(5)))

    assert len({a.service_id for a in answers}) == 1
    assert len(desk.store.view.services) == 1


async def test_a_taken_name_is_refused_in_dockers_words() -> None:
    desk = make_desk()
    await created(desk, a_spec("web"))

    with pytest.raises(
        AlreadyExists, match=r"^name conflicts with an existing object: service web already exists$"
    ):
        await created(desk, a_spec("web"))


async def test_a_service_without_a_name_gets_one() -> None:
    desk = make_desk()

    service = await created(desk, a_spec(name=""))

    validate_service_spec(service.spec)


def test_an_invented_name_is_free_even_when_most_are_taken() -> None:
    name = invent_name(random.Random(1), lambda name: not name[-1].isdigit())

    assert name[-1].isdigit()


async def test_an_invalid_spec_stores_nothing() -> None:
    desk = make_desk()

    with pytest.raises(InvalidArgument):
        await created(desk, a_spec(image="Not An Image"))

    assert desk.store.applied_index == 0


async def test_a_manager_that_does_not_lead_refuses_writes_and_names_the_leader() -> None:
    desk = make_desk()
    desk.agreement.elect("two")

    with pytest.raises(NotLeader) as caught:
        await created(desk, a_spec())

    assert caught.value.leader_address == "two:2377"


async def test_a_refusal_is_confirmed_against_the_clusters_newest_state() -> None:
    desk = make_desk(a_service("web"))

    async def barrier() -> None:
        service = desk.store.view.services.by_name("web")
        if service is not None:
            await drop_one(desk, pb.Service, service.id)

    desk.agreement.barrier = barrier  # type: ignore[method-assign]

    await created(desk, a_spec("web"))

    assert len(desk.store.view.services) == 1


# ---- ports


async def test_a_port_that_another_service_has_is_refused() -> None:
    desk = make_desk()
    web = await created(desk, with_port("web", 8080))

    with pytest.raises(
        InvalidArgument,
        match=re.escape(f"port '8080' is already in use by service 'web' ({web.id}) as an ingress port"),
    ):
        await created(desk, with_port("api", 8080))


async def test_a_host_port_keeps_the_same_ingress_port_out() -> None:
    desk = make_desk()
    web = await created(desk, with_port("web", 8080, pb.PUBLISH_MODE_HOST))

    with pytest.raises(
        InvalidArgument,
        match=re.escape(
            f"port '8080' is already in use by service 'web' ({web.id}) as a host-published port"
        ),
    ):
        await created(desk, with_port("api", 8080))


async def test_services_may_share_a_host_port() -> None:
    desk = make_desk()
    await created(desk, with_port("web", 8080, pb.PUBLISH_MODE_HOST))

    await created(desk, with_port("api", 8080, pb.PUBLISH_MODE_HOST))

    assert len(desk.store.view.services) == 2


async def test_a_port_that_the_cluster_chose_counts_as_taken() -> None:
    web = a_service("web")
    web.endpoint.ports.add(target_port=80, published_port=30000)
    desk = make_desk(web)

    with pytest.raises(InvalidArgument, match="port '30000' is already in use by service 'web'"):
        await created(desk, with_port("api", 30000))


# ---- what a service refers to


async def test_a_network_may_be_named_and_is_stored_by_id() -> None:
    front = a_network("front")
    desk = make_desk(front)
    spec = a_spec(networks=[pb.NetworkAttachmentConfig(target="front", aliases=["www"])])

    service = await created(desk, spec)

    (attachment,) = service.spec.task_template.networks
    assert (attachment.target, list(attachment.aliases)) == (front.id, ["www"])


async def test_an_unknown_network_is_refused() -> None:
    spec = a_spec(networks=[pb.NetworkAttachmentConfig(target="nowhere")])

    with pytest.raises(NotFound, match=r"^network nowhere not found$"):
        await created(make_desk(), spec)


async def test_the_ingress_network_cannot_be_attached() -> None:
    desk = make_desk(a_network("ingress", ingress=True))
    spec = a_spec(networks=[pb.NetworkAttachmentConfig(target="ingress")])

    with pytest.raises(
        InvalidArgument, match='Service cannot be explicitly attached to the ingress network "ingress"'
    ):
        await created(desk, spec)


async def test_secrets_and_configs_must_exist_under_their_name() -> None:
    key, conf = a_secret("key"), a_config("conf")
    desk = make_desk(key, conf)
    good = a_spec("good")
    container = good.task_template.container_spec
    container.secrets.add(secret_id=key.id, secret_name="key", file=pb.FileTarget(name="key"))
    container.configs.add(config_id=conf.id, config_name="conf", file=pb.FileTarget(name="conf"))
    renamed = a_spec("renamed")
    renamed.task_template.container_spec.secrets.add(
        secret_id=key.id, secret_name="other", file=pb.FileTarget(name="key")
    )
    absent = a_spec("absent")
    for number in (1, 2):
        absent.task_template.container_spec.configs.add(
            config_id=f"c{number}", config_name=f"conf{number}", file=pb.FileTarget(name=f"{number}")
        )

    await created(desk, good)

    with pytest.raises(InvalidArgument, match=r"^secret not found: other$"):
        await created(desk, renamed)
    with pytest.raises(InvalidArgument, match=r"^configs not found: conf1, conf2$"):
        await created(desk, absent)


# ---- remove


async def test_a_removed_service_is_gone_and_removing_it_again_says_so() -> None:
    desk = make_desk()
    await created(desk, a_spec())

    await desk.control.remove_service(pb.RemoveServiceRequest(service_id="web"))

    with pytest.raises(NotFound, match=r"^service web not found$"):
        await desk.control.remove_service(pb.RemoveServiceRequest(service_id="web"))


async def test_a_removal_that_is_repeated_gets_the_same_answer() -> None:
    desk = make_desk()
    await created(desk, a_spec())
    request = pb.RemoveServiceRequest(operation_id="once", service_id="web")

    assert await desk.control.remove_service(request) == await desk.control.remove_service(request)


# ---- references and lists


async def test_a_service_is_found_by_id_name_and_prefix_in_this_order() -> None:
    web = a_service("web", id="aaa1")
    api = a_service("aaa1", id="aab2")
    desk = make_desk(web, api)

    async def found(reference: str) -> str:
        return (await desk.control.get_service(pb.GetServiceRequest(reference=reference))).service.id

    assert await found("aaa1") == "aaa1"
    assert await found("web") == "aaa1"
    assert await found("aab") == "aab2"
    with pytest.raises(InvalidArgument, match=r"^service aa is ambiguous \(2 matches found\)$"):
        await found("aa")
    with pytest.raises(NotFound, match=r"^service nothing not found$"):
        await found("nothing")
    with pytest.raises(InvalidArgument, match="is empty"):
        await found("")


def named(response: pb.ListServicesResponse) -> list[str]:
    return [s.spec.name for s in response.services]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ([], ["web", "webhook", "agent"]),
        ([("name", ["web"])], ["web", "webhook"]),
        ([("name", ["webh", "ag"])], ["webhook", "agent"]),
        ([("id", ["id1"])], ["web"]),
        ([("mode", ["global"])], ["agent"]),
        ([("mode", ["replicated"]), ("name", ["webh"])], ["webhook"]),
        ([("label", ["tier=front"])], ["web"]),
        ([("label", ["tier"])], ["web", "webhook"]),
        ([("label", ["tier", "x=y"])], ["webhook"]),
        ([("label", ["tier=none"])], []),
        ([("runtime", ["container"])], ["web", "webhook", "agent"]),
        ([("runtime", ["plugin"])], []),
    ],
)
async def test_services_are_listed_by_filter(filters: list[tuple[str, list[str]]], names: list[str]) -> None:
    desk = make_desk(
        a_service("web", id="id1", labels={"tier": "front"}),
        a_service("webhook", id="id2", labels={"tier": "back", "x": "y"}),
        a_global_service("agent", id="id3"),
    )
    request = pb.ListServicesRequest(filters=[pb.Filter(key=k, values=v) for k, v in filters])

    assert named(await desk.control.list_services(request)) == names


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [("foo", "x", "invalid filter 'foo'"), ("mode", "x", "invalid mode filter: 'x'")],
)
async def test_an_unknown_service_filter_is_refused(key: str, value: str, text: str) -> None:
    request = pb.ListServicesRequest(filters=[pb.Filter(key=key, values=[value])])

    with pytest.raises(InvalidArgument, match=f"^{text}$"):
        await make_desk().control.list_services(request)


async def test_the_status_counts_tasks_that_run_and_should() -> None:
    web = a_service("web", replicas=3)
    agent = a_global_service("agent")
    nodes = [a_node("a"), a_node("b")]
    desk = make_desk(
        web,
        agent,
        *nodes,
        a_task(web, 1),
        a_task(web, 2, pb.TASK_STATE_STARTING),
        a_task(web, 3, pb.TASK_STATE_RUNNING, pb.TASK_STATE_SHUTDOWN),
        a_task(web, 3, pb.TASK_STATE_NEW),
        a_task(agent, 0, node_id=nodes[0].id),
        a_task(agent, 0, pb.TASK_STATE_FAILED, pb.TASK_STATE_SHUTDOWN, node_id=nodes[1].id),
        a_task(agent, 0, pb.TASK_STATE_ASSIGNED, node_id=nodes[1].id),
    )

    listed = (await desk.control.list_services(pb.ListServicesRequest(status=True))).services

    counts = {s.spec.name: (s.service_status.running_tasks, s.service_status.desired_tasks) for s in listed}
    assert counts == {"web": (1, 3), "agent": (1, 2)}
    without = (await desk.control.list_services(pb.ListServicesRequest())).services
    assert not any(s.HasField("service_status") for s in without)


async def test_completed_tasks_of_a_job_are_counted_in_its_iteration() -> None:
    job = a_service("job")
    job.spec.mode.replicated_job.max_concurrent = 1
    job.job_status.job_iteration.index = 2
    desk = make_desk(
        job,
        a_task(job, 1, pb.TASK_STATE_COMPLETE, job_iteration=pb.Version(index=1)),
        a_task(job, 1, pb.TASK_STATE_COMPLETE, job_iteration=pb.Version(index=2)),
    )

    (listed,) = (await desk.control.list_services(pb.ListServicesRequest(status=True))).services

    assert listed.service_status.completed_tasks == 1
