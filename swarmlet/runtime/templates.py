"""Docker's placeholders in a task's spec: `{{.Task.Slot}}` and its kin.

Called by the runtimes while they prepare a task. The fields in which they are
expanded are Docker's: environment, hostname and mounts. Go's template language is
not implemented: a placeholder is one field of the context, or `index` of the labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from swarmlet.api import pb
from swarmlet.runtime.base import TaskRejected, TaskResources

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")
_LABEL = re.compile(r'index\s+\.Service\.Labels\s+"([^"]*)"')


@dataclass(frozen=True)
class TemplateContext:
    fields: Mapping[str, str]
    """By name as written, e.g. `.Task.ID`."""
    service_labels: Mapping[str, str]


def task_name(task: pb.Task) -> str:
    """`service.slot.taskid`, or `service.nodeid.taskid` for a global service: Docker's container name."""
    return f"{task.service_name or task.service_id}.{task.slot or task.node_id}.{task.id}"


def context_for(task: pb.Task, resources: TaskResources, address: str | None = None) -> TemplateContext:
    """What placeholders stand for in this task. `address` makes `{{.Task.Address}}` known."""
    labels = dict(sorted(task.service_labels.items()))
    fields = {
        ".Service.ID": task.service_id,
        ".Service.Name": task.service_name,
        ".Service.Labels": "map[" + " ".join(f"{name}:{value}" for name, value in labels.items()) + "]",
        ".Node.ID": resources.node_id or task.node_id,
        ".Node.Hostname": resources.node_hostname,
        ".Task.ID": task.id,
        ".Task.Name": task_name(task),
        ".Task.Slot": str(task.slot) if task.slot else task.node_id,
    }
    if address is not None:
        fields[".Task.Address"] = address
    return TemplateContext(fields, labels)


def expand(text: str, context: TemplateContext, where: str) -> str:
    """`text` with its placeholders replaced. Raises TaskRejected naming `where` for one it does not know."""
    if "{{" not in text:
        return text

    def value(action: re.Match[str]) -> str:
        expression = action.group(1)
        if (label := _LABEL.fullmatch(expression)) is not None:
            return context.service_labels.get(label.group(1), "")
        if expression in context.fields:
            return context.fields[expression]
        field = expression.removeprefix(".")
        raise TaskRejected(
            f'expanding {where} failed: template: expansion: executing "expansion" at <{expression}>: '
            f"can't evaluate field {field} in type template.Context"
        )

    expanded = _ACTION.sub(value, text)
    if "{{" in _ACTION.sub("", text):
        raise TaskRejected(f"expanding {where} failed: template: expansion: unclosed action in {text!r}")
    return expanded


def expand_container_spec(spec: pb.ContainerSpec, context: TemplateContext) -> pb.ContainerSpec:
    """A copy of `spec` with environment, hostname and mounts expanded. Raises TaskRejected."""
    expanded = pb.ContainerSpec()
    expanded.CopyFrom(spec)
    expanded.hostname = expand(spec.hostname, context, "hostname")
    del expanded.env[:]
    expanded.env.extend(expand(entry, context, "env") for entry in spec.env)
    for mount in expanded.mounts:
        mount.source = expand(mount.source, context, "mount source")
        mount.target = expand(mount.target, context, "mount target")
        labels = mount.volume_options.labels if mount.HasField("volume_options") else {}
        for name in list(labels):
            labels[name] = expand(labels[name], context, "mount label")
    return expanded
