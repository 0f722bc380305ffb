from __future__ import annotations

import pytest

from swarmlet.api import pb
from swarmlet.runtime.base import TaskRejected
from swarmlet.runtime.templates import context_for, expand, expand_container_spec
from tests.unit.runtime.builders import RESOURCES, make_task


def labelled_task() -> pb.Task:
    task = make_task("t1", slot=3)
    task.service_labels.update({"tier": "front", "app": "shop"})
    return task


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("plain", "plain"),
        ("{{.Service.ID}}", "service1"),
        ("{{ .Service.Name }}", "web"),
        ("{{.Service.Labels}}", "map[app:shop tier:front]"),
        ('{{index .Service.Labels "tier"}}', "front"),
        ('{{index .Service.Labels "none"}}', ""),
        ("{{.Node.ID}}/{{.Node.Hostname}}", "node1/host1"),
        ("{{.Task.ID}}-{{.Task.Slot}}", "t1-3"),
        ("{{.Task.Name}}", "web.3.t1"),
    ],
)
def test_placeholder_stands_for_its_field(template: str, value: str) -> None:
    assert expand(template, context_for(labelled_task(), RESOURCES), "env") == value


def test_slot_of_a_global_task_is_its_node() -> None:
    context = context_for(make_task("t1", slot=0), RESOURCES)

    assert expand("{{.Task.Slot}} {{.Task.Name}}", context, "env") == "node1 web.node1.t1"


@pytest.mark.parametrize("template", ["{{.Nope}}", "{{.Task.Address}}", "{{env PATH}}", "a {{", "{{}}"])
def test_what_is_unknown_is_rejected_by_name(template: str) -> None:
    with pytest.raises(TaskRejected, match="expanding hostname failed: template: expansion"):
        expand(template, context_for(labelled_task(), RESOURCES), "hostname")


def test_address_is_known_only_where_a_runtime_gives_one() -> None:
    assert (
        expand("{{.Task.Address}}", context_for(make_task(), RESOURCES, "127.64.0.1"), "args") == "127.64.0.1"
    )


def test_a_value_is_not_expanded_again() -> None:
    task = make_task()
    task.service_labels["x"] = "{{.Task.ID}}"

    assert expand('{{index .Service.Labels "x"}}', context_for(task, RESOURCES), "env") == "{{.Task.ID}}"


def test_environment_hostname_and_mounts_are_expanded_and_nothing_else() -> None:
    spec = pb.ContainerSpec(
        args=["{{.Task.ID}}"],
        hostname="web-{{.Task.Slot}}",
        env=["ID={{.Task.ID}}"],
        mounts=[pb.Mount(source="data-{{.Task.Slot}}", target="/data/{{.Task.ID}}")],
    )

    expanded = expand_container_spec(spec, context_for(make_task("t1"), RESOURCES))

    assert expanded.hostname == "web-1"
    assert list(expanded.env) == ["ID=t1"]
    assert (expanded.mounts[0].source, expanded.mounts[0].target) == ("data-1", "/data/t1")
    assert list(expanded.args) == ["{{.Task.ID}}"]
    assert spec.hostname == "web-{{.Task.Slot}}"
