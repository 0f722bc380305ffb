from __future__ import annotations

import io

import pytest

from swarmlet.api import pb
from swarmlet.cli.command import CliError
from swarmlet.cli.progress import Convergence, is_up_to_date
from swarmlet.cli.screen import PlainDisplay, TerminalDisplay
from tests.unit.cli.fakes import NODE_IDS, SERVICE_ID, lines, seen, service, task


class Watched:
    """A Convergence and the lines that it prints."""

    def __init__(self, minimum_version: int = 0) -> None:
        self._out = io.StringIO()
        self.convergence = Convergence(SERVICE_ID, PlainDisplay(self._out), minimum_version=minimum_version)
        self.now = 0.0

    def see(self, *objects: pb.Service | pb.Task, snapshot: bool = False, after: float = 0) -> bool:
        self.now += after
        self.convergence.take(seen(*objects, snapshot=snapshot))
        return self.convergence.look(self.now)

    @property
    def text(self) -> str:
        return self._out.getvalue()


def updating(state: pb.UpdateState.ValueType, *, message: str = "", image: str = "nginx:2") -> pb.Service:
    changed = service(replicas=2, version=6, image=image)
    changed.spec_version.index = 2
    changed.update_status.state = state
    changed.update_status.message = message
    return changed


def test_update_converges_when_the_cluster_says_that_the_rollout_is_over() -> None:
    watched = Watched(minimum_version=6)
    new = [task(n, identifier=f"n{n}", revision=2, image="nginx:2") for n in (1, 2)]

    steps = [
        watched.see(updating(pb.UPDATE_STATE_NONE), task(1), task(2), snapshot=True),
        watched.see(updating(pb.UPDATE_STATE_UPDATING), new[0]),
        watched.see(new[1]),
        watched.see(after=2),
        watched.see(updating(pb.UPDATE_STATE_COMPLETED)),
    ]

    assert steps == [False, False, False, False, True]
    assert watched.text == lines(
        "overall progress: 0 out of 2 tasks",
        "1/2:  ",
        "2/2:  ",
        "overall progress: 1 out of 2 tasks",
        "overall progress: 2 out of 2 tasks",
        "verify: Waiting 5 seconds to verify that tasks are stable...",
        "verify: Service converged",
    )


def test_task_that_fails_during_the_monitoring_period_is_told() -> None:
    watched = Watched()
    new = task(1, identifier="n1", revision=2, image="nginx:2")
    other = task(2, identifier="n2", revision=2, image="nginx:2")
    watched.see(updating(pb.UPDATE_STATE_UPDATING), new, other, snapshot=True)
    failed = task(1, pb.TASK_STATE_FAILED, identifier="n1", revision=2, image="nginx:2", err="task: exit (1)")

    assert not watched.see(failed)

    assert watched.text.endswith(
        lines(
            "overall progress: 1 out of 2 tasks",
            "1/2: task: exit (1)",
            "verify: Detected task failure",
        )
    )


def test_rollback_is_shown_as_one() -> None:
    watched = Watched()
    watched.see(updating(pb.UPDATE_STATE_UPDATING), snapshot=True)
    watched.see(
        updating(
            pb.UPDATE_STATE_ROLLBACK_STARTED, message="update rolled back due to failure", image="nginx:1"
        )
    )

    done = watched.see(
        task(1),
        task(2),
        updating(pb.UPDATE_STATE_ROLLBACK_COMPLETED, message="rollback completed", image="nginx:1"),
    )

    assert done
    assert "rollback: update rolled back due to failure\n" in watched.text
    assert "overall progress: rolling back update: 0 out of 2 tasks\n" in watched.text
    assert watched.text.endswith(lines("verify: Service converged", "rollback: rollback completed"))


def test_what_a_follower_still_shows_of_before_the_change_does_not_count() -> None:
    watched = Watched(minimum_version=6)

    early = watched.see(service(replicas=1, version=5), task(1), snapshot=True)
    watched.see(service(replicas=1, version=6), after=5)
    late = watched.see(after=1)

    assert (early, late) == (False, True)


def test_waiting_replacement_shows_why_its_predecessor_failed() -> None:
    watched = Watched()
    failed = task(
        1, pb.TASK_STATE_FAILED, identifier="a", desired=pb.TASK_STATE_SHUTDOWN, err="no such\nfile"
    )
    waiting = task(1, pb.TASK_STATE_READY, identifier="b", desired=pb.TASK_STATE_READY)

    watched.see(service(replicas=1), failed, waiting, snapshot=True)

    assert watched.text.endswith("1/1: no such file\n")


def test_service_that_is_removed_ends_the_wait() -> None:
    watched = Watched()
    gone = pb.WatchResponse()
    gone.events.add(kind=pb.CHANGE_KIND_DELETE).object.service.CopyFrom(service())

    with pytest.raises(CliError, match="was removed"):
        watched.convergence.take(gone)


def test_global_service_converges_when_every_node_runs_its_task() -> None:
    watched = Watched()
    everywhere = service()
    everywhere.spec.mode.ClearField("replicated")
    everywhere.spec.mode.MergeFrom(pb.ServiceMode.FromString(b"\x12\x00"))

    nothing = watched.see(everywhere, snapshot=True)
    one = watched.see(
        task(0, identifier="a", node=NODE_IDS[0]),
        task(0, pb.TASK_STATE_STARTING, identifier="b", node=NODE_IDS[1]),
    )
    both = watched.see(task(0, identifier="b", node=NODE_IDS[1]))
    stable = watched.see(after=1)

    assert (nothing, one, both, stable) == (False, False, False, True)
    assert watched.text == lines(
        "overall progress: waiting for new tasks",
        "overall progress: 1 out of 2 tasks",
        "overall progress: 2 out of 2 tasks",
        "verify: Waiting 1 seconds to verify that tasks are stable...",
        "verify: Service converged",
    )


def test_more_than_twenty_tasks_have_no_lines_of_their_own() -> None:
    watched = Watched()

    watched.see(service(replicas=25), *(task(n, identifier=f"t{n}x") for n in range(1, 26)), snapshot=True)
    done = watched.see(after=1)

    assert done
    assert watched.text == lines(
        "overall progress: 25 out of 25 tasks",
        "verify: Waiting 1 seconds to verify that tasks are stable...",
        "verify: Service converged",
    )


def test_command_that_exits_at_once_is_no_convergence() -> None:
    watched = Watched()
    watched.see(service(replicas=1), task(1), snapshot=True)

    done = watched.see(task(1, pb.TASK_STATE_FAILED, err="task: non-zero exit (3)"), after=0.3)

    assert not done
    assert watched.text.endswith(lines("1/1: task: non-zero exit (3)", "verify: Detected task failure"))


def test_failure_that_nothing_replaces_ends_the_wait() -> None:
    watched = Watched()
    failed = task(1, pb.TASK_STATE_FAILED, desired=pb.TASK_STATE_SHUTDOWN, err="task: non-zero exit (3)")
    watched.see(service(replicas=1), failed, snapshot=True)

    with pytest.raises(CliError, match=r"failed and is not restarted: task: non-zero exit \(3\)"):
        watched.see(after=1)


def test_scaling_leaves_tasks_of_the_revision_before_up_to_date() -> None:
    scaled = service(replicas=5)
    scaled.spec_version.index = 2

    assert is_up_to_date(task(1, revision=1), scaled)
    assert not is_up_to_date(task(1, revision=1, image="nginx:0"), scaled)


def test_terminal_lines_are_redrawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = io.StringIO()
    display = TerminalDisplay(out)

    display.show("overall progress", "0 out of 1 tasks")
    display.show("1/1", "running  ", share=1.0)
    display.show("overall progress", "1 out of 1 tasks")
    display.show("overall progress", "1 out of 1 tasks")

    assert out.getvalue() == (
        "overall progress: 0 out of 1 tasks\n"
        f"1/1: running   [{'=' * 50}>]\n"
        "\x1b[2A\r\x1b[2Koverall progress: 1 out of 1 tasks\x1b[2B\r"
    )
