"""The controllers that a leading manager runs, one loop each (`reconcile.ReconcileLoop`)."""

from __future__ import annotations

from swarmlet.manager.allocator.ports import PortAllocator
from swarmlet.manager.orchestrator.global_ import Global
from swarmlet.manager.orchestrator.reaper import Reaper
from swarmlet.manager.orchestrator.replicated import Replicated
from swarmlet.manager.reconcile import Controller
from swarmlet.manager.scheduler.scheduler import Scheduler


def all_controllers() -> list[Controller]:
    """Fresh ones, for one term of leadership."""
    return [Replicated(), Global(), PortAllocator(), Scheduler(), Reaper()]
