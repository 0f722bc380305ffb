"""Looking services up and changing their names, for the tests beside it."""

from __future__ import annotations

from swarmlet.api import pb
from swarmlet.store.store import Store


def renamed(service: pb.Service, name: str) -> pb.Service:
    copy = pb.Service()
    copy.CopyFrom(service)
    copy.spec.name = name
    return copy


def stored(store: Store, service: pb.Service) -> pb.Service:
    found = store.view.services.get(service.id)
    assert found is not None
    return found
