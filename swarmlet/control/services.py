"""Services: created, changed, rolled back, removed and listed. Tasks follow from them elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime

from swarmlet.api import pb, taskstate
from swarmlet.api.errors import Conflict, FailedPrecondition, InvalidArgument
from swarmlet.api.ids import id_from
from swarmlet.control import filters
from swarmlet.control.names import invent_name
from swarmlet.control.ports import check_ports
from swarmlet.control.presentation import Presenter, in_turns
from swarmlet.control.references import find_network, find_service
from swarmlet.control.service_spec import (
    fill_defaults,
    referenced_configs,
    referenced_secrets,
    validate_service_spec,
)
from swarmlet.control.writes import Writer
from swarmlet.store.store import Store, Transaction
from swarmlet.store.tables import Tables, slot_key

ROLLBACK_PREVIOUS = "previous"
_FILTERS = frozenset({"id", "name", "label", "mode", "runtime"})
_PAUSED = (pb.UPDATE_STATE_PAUSED, pb.UPDATE_STATE_ROLLBACK_PAUSED)


class Services:
    """The service methods of Control."""

    def __init__(
        self,
        store: Store,
        *,
        writer: Writer,
        presenter: Presenter,
        now: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        self._store = store
        self._writer = writer
        self._presenter = presenter
        self._now = now
        self._rng = rng

    async def list_services(self, request: pb.ListServicesRequest) -> pb.ListServicesResponse:
        view = self._store.view
        wanted = filters.read_filters(request.filters, _FILTERS)
        modes = filters.read_words(wanted, "mode", filters.MODES)
        runtimes = wanted.get("runtime", ())
        services = [
            service
            for service in view.services
            if filters.has_prefix(service.id, wanted.get("id", ()))
            and filters.has_prefix(service.spec.name, wanted.get("name", ()))
            and filters.has_labels(service.spec.labels, wanted.get("label", ()))
            and (not modes or service.spec.mode.WhichOneof("mode") in modes)
            and (not runtimes or (service.spec.task_template.runtime or "container") in runtimes)
        ]
        statuses = [service_status(view, s) for s in services] if request.status else []
        response = pb.ListServicesResponse()
        async for service in in_turns(services):
            shown = response.services.add()
            shown.CopyFrom(service)
            self._presenter.prepare(shown)
        for shown, status in zip(response.services, statuses, strict=False):
            shown.service_status.CopyFrom(status)
        return response

    async def get(self, request: pb.GetServiceRequest) -> pb.GetServiceResponse:
        response = pb.GetServiceResponse(service=find_service(self._store.view, request.reference))
        self._presenter.prepare(response.service)
        return response

    async def create(self, request: pb.CreateServiceRequest) -> pb.CreateServiceResponse:
        operation_id = self._writer.operation_id(request.operation_id)
        service_id = id_from("service", operation_id)
        asked = pb.ServiceSpec()
        asked.CopyFrom(request.spec)
        fill_defaults(asked)
        if not asked.name:
            view = self._store.view
            asked.name = invent_name(self._rng, lambda name: view.services.by_name(name) is not None)
        validate_service_spec(asked)

        def create(transaction: Transaction) -> None:
            if transaction.get(pb.Service, service_id) is not None:
                return
            service = pb.Service(id=service_id, spec=asked)
            service.spec_version.index = 1
            _resolve_networks(transaction.view, service.spec)
            check_ports(transaction.view, service.spec, service_id=service_id)
            _check_references(transaction.view, service.spec)
            transaction.create(service)

        index = await self._writer.commit(operation_id, create)
        return pb.CreateServiceResponse(service_id=service_id, index=index)

    async def update(self, request: pb.UpdateServiceRequest) -> pb.UpdateServiceResponse:
        if request.rollback not in ("", "none", ROLLBACK_PREVIOUS):
            raise InvalidArgument(f"unrecognized rollback option {request.rollback}")
        is_rollback = request.rollback == ROLLBACK_PREVIOUS
        service_id = ""

        def update(transaction: Transaction) -> None:
            nonlocal service_id
            view = transaction.view
            current = find_service(view, request.service_id)
            service_id = current.id
            if current.version.index != request.version:
                raise Conflict("update out of sequence")
            if is_rollback:
                changed = self._rolled_back(view, current)
            else:
                changed = _with_spec(current, _asked_spec(view, current, request.spec))
            if changed == current:
                return
            if changed.spec.endpoint_spec != current.spec.endpoint_spec:
                check_ports(view, changed.spec, service_id=service_id)
            _check_references(view, changed.spec)
            transaction.update(changed)

        index = await self._writer.commit(self._writer.operation_id(request.operation_id), update)
        service = find_service(self._store.view, service_id or request.service_id)
        response = pb.UpdateServiceResponse(service=service, index=index)
        self._presenter.prepare(response.service)
        return response

    async def remove(self, request: pb.RemoveServiceRequest) -> pb.RemoveServiceResponse:
        def remove(transaction: Transaction) -> None:
            transaction.delete(pb.Service, find_service(transaction.view, request.service_id).id)

        index = await self._writer.commit(self._writer.operation_id(request.operation_id), remove)
        return pb.RemoveServiceResponse(index=index)

    def _rolled_back(self, view: Tables, current: pb.Service) -> pb.Service:
        if not current.HasField("previous_spec"):
            raise FailedPrecondition(f"service {current.id} does not have a previous spec")
        previous = pb.ServiceSpec()
        previous.CopyFrom(current.previous_spec)
        # A network may be gone since.
        _resolve_networks(view, previous)
        changed = _with_spec(current, previous)
        changed.update_status.Clear()
        changed.update_status.state = pb.UPDATE_STATE_ROLLBACK_STARTED
        changed.update_status.message = "manually requested rollback"
        changed.update_status.started_at.FromDatetime(self._now())
        return changed


def _asked_spec(view: Tables, current: pb.Service, asked: pb.ServiceSpec) -> pb.ServiceSpec:
    """The valid spec that an update asks for, completed by what the user never sees or may leave out.

    Raises InvalidArgument, and FailedPrecondition for what an update may not change.
    """
    spec = pb.ServiceSpec()
    spec.CopyFrom(asked)
    spec.name = asked.name or current.spec.name
    if spec.mode.WhichOneof("mode") is None:
        spec.mode.CopyFrom(current.spec.mode)
    fill_defaults(spec)
    old_container, container = current.spec.task_template.container_spec, spec.task_template.container_spec
    # Reads hide the credentials, so a spec that was read and sent back comes without them.
    if old_container.pull_auth and not container.pull_auth:
        container.pull_auth = old_container.pull_auth
    if spec.name != current.spec.name:
        raise FailedPrecondition("renaming services is not supported")
    if spec.mode.WhichOneof("mode") != current.spec.mode.WhichOneof("mode"):
        raise FailedPrecondition("service mode change is not allowed")
    validate_service_spec(spec)
    _resolve_networks(view, spec)
    return spec


def _with_spec(current: pb.Service, spec: pb.ServiceSpec) -> pb.Service:
    """The service under a new spec. An update that changes nothing only resumes a paused one."""
    changed = pb.Service()
    changed.CopyFrom(current)
    is_paused = current.update_status.state in _PAUSED
    if is_paused or _is_new_rollout(current.spec, spec):
        # Whoever rolls the change out writes it anew.
        changed.ClearField("update_status")
    if spec != current.spec:
        changed.previous_spec.CopyFrom(current.spec)
        changed.spec.CopyFrom(spec)
        changed.spec_version.index = current.spec_version.index + 1
    return changed


def _is_new_rollout(old: pb.ServiceSpec, new: pb.ServiceSpec) -> bool:
    return old.task_template != new.task_template or old.endpoint_spec != new.endpoint_spec


def _resolve_networks(view: Tables, spec: pb.ServiceSpec) -> None:
    """Puts ids in the place of names. Raises NotFound, or InvalidArgument for the ingress network."""
    for attachment in spec.task_template.networks:
        network = find_network(view, attachment.target)
        if network.spec.ingress:
            raise InvalidArgument(
                f'Service cannot be explicitly attached to the ingress network "{network.spec.name}"'
            )
        attachment.target = network.id


def _check_references(view: Tables, spec: pb.ServiceSpec) -> None:
    """Raises InvalidArgument when a secret or config does not exist, or not under that name."""
    secrets = {s.id: s.spec.name for s in view.secrets}
    configs = {c.id: c.spec.name for c in view.configs}
    for word, references, known in (
        ("secret", referenced_secrets(spec), secrets),
        ("config", referenced_configs(spec), configs),
    ):
        missing = [name for object_id, name in references if known.get(object_id) != name]
        if missing:
            plural = "s" if len(missing) > 1 else ""
            raise InvalidArgument(f"{word}{plural} not found: {', '.join(missing)}")


def service_status(view: Tables, service: pb.Service) -> pb.ServiceStatus:
    """How many tasks run, should run and are complete.

    A task that is being replaced does not count as running, also while its node is
    lost and cannot say that it stopped.
    """
    tasks = view.tasks.find("service", service.id)
    status = pb.ServiceStatus()
    status.running_tasks = sum(taskstate.is_running(t) for t in tasks)
    mode = service.spec.mode
    if mode.WhichOneof("mode") == "replicated":
        status.desired_tasks = mode.replicated.replicas
    else:
        status.desired_tasks = len({slot_key(t) for t in tasks if t.desired_state <= pb.TASK_STATE_RUNNING})
    status.completed_tasks = sum(
        t.status.state == pb.TASK_STATE_COMPLETE
        for t in tasks
        if service.HasField("job_status") and t.job_iteration == service.job_status.job_iteration
    )
    return status
