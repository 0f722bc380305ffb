"""Tasks: listed and shown. Nobody creates or changes one through this door."""

from __future__ import annotations

from collections.abc import Callable

from swarmlet.api import pb
from swarmlet.control import filters
from swarmlet.control.presentation import Presenter, in_turns
from swarmlet.control.references import find_service, find_task, task_name
from swarmlet.store.store import Store
from swarmlet.store.tables import Tables

_FILTERS = frozenset({"id", "name", "label", "service", "node", "desired-state", "runtime", "_up-to-date"})

FindNode = Callable[[Tables, str], pb.Node]


class Tasks:
    """The task methods of Control."""

    def __init__(self, store: Store, *, presenter: Presenter, find_node: FindNode) -> None:
        self._store = store
        self._presenter = presenter
        self._find_node = find_node

    async def list_tasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        view = self._store.view
        wanted = filters.read_filters(request.filters, _FILTERS)
        desired = filters.read_words(wanted, "desired-state", filters.TASK_STATES)
        runtimes = wanted.get("runtime", ())
        tasks = [
            task
            for task in self._candidates(view, wanted)
            if filters.has_prefix(task.id, wanted.get("id", ()))
            and filters.has_prefix(task_name(task), wanted.get("name", ()))
            and filters.has_labels(task.labels, wanted.get("label", ()))
            and (not desired or task.desired_state in desired)
            and (not runtimes or (task.spec.runtime or "container") in runtimes)
            and ("_up-to-date" not in wanted or _is_up_to_date(view, task))
        ]
        response = pb.ListTasksResponse()
        async for task in in_turns(tasks):
            shown = response.tasks.add()
            shown.CopyFrom(task)
            self._presenter.prepare(shown)
        return response

    async def get(self, request: pb.GetTaskRequest) -> pb.GetTaskResponse:
        response = pb.GetTaskResponse(task=find_task(self._store.view, request.reference))
        self._presenter.prepare(response.task)
        return response

    def _candidates(self, view: Tables, wanted: filters.Wanted) -> list[pb.Task]:
        """The tasks of the services and nodes asked for, found by index."""
        services = filters.read_references(wanted, "service", lambda r: find_service(view, r).id)
        nodes = filters.read_references(wanted, "node", lambda r: self._find_node(view, r).id)
        if services:
            found = [
                t for service_id in dict.fromkeys(services) for t in view.tasks.find("service", service_id)
            ]
            return [t for t in found if not nodes or t.node_id in nodes]
        if nodes:
            return [t for node_id in dict.fromkeys(nodes) for t in view.tasks.find("node", node_id)]
        return list(view.tasks)


def _is_up_to_date(view: Tables, task: pb.Task) -> bool:
    service = view.services.get(task.service_id)
    if service is None:
        return False
    return task.spec_version == service.spec_version or task.spec == service.spec.task_template
