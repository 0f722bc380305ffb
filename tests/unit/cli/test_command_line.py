from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from swarmlet.cli.main import cli
from tests.unit.cli.fakes import FakeDaemon

HEAVY = ("grpc", "google.protobuf", "rich", "cryptography", "asyncio", "docker", "aiohttp")


def run(*args: str, **kwargs: object) -> Result:
    return CliRunner().invoke(cli, list(args), prog_name="swarmlet", **kwargs)  # type: ignore[arg-type]


def process(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "swarmlet", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_no_daemon_is_told_with_its_address(tmp_path: Path) -> None:
    for host in (str(tmp_path / "s.sock"), f"unix://{tmp_path / 's.sock'}"):
        result = run("-H", host, "node", "ls")

        assert result.exit_code == 1
        assert result.stderr == (
            f"Cannot connect to the swarmlet daemon at unix://{tmp_path / 's.sock'}. "
            "Is the swarmlet daemon running?\n"
        )


def test_host_comes_from_the_environment_too(daemon: FakeDaemon) -> None:
    result = process("service", "ls", "-q", SWARMLET_HOST=f"unix://{daemon.socket}")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_hosts_that_are_no_socket_are_refused() -> None:
    result = run("-H", "tcp://1.2.3.4:5", "node", "ls")

    assert result.exit_code == 1
    assert 'unable to parse host "tcp://1.2.3.4:5"' in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (
            ("nope",),
            1,
            "swarmlet: unknown command: swarmlet nope\n\nUsage:  swarmlet COMMAND\n\n"
            "Run 'swarmlet --help' for more information\n",
        ),
        (
            ("node", "nope"),
            1,
            "swarmlet: unknown command: swarmlet node nope\n\nUsage:  swarmlet node COMMAND\n\n"
            "Run 'swarmlet node --help' for more information\n",
        ),
        (
            ("node", "promote"),
            1,
            "swarmlet: 'swarmlet node promote' requires at least 1 argument\n\n"
            "Usage:  swarmlet node promote NODE [NODE...]\n\n"
            "See 'swarmlet node promote --help' for more information\n",
        ),
        (
            ("node", "ls", "x"),
            1,
            "swarmlet: 'swarmlet node ls' accepts no arguments\n\nUsage:  swarmlet node ls [OPTIONS]\n\n"
            "See 'swarmlet node ls --help' for more information\n",
        ),
        (
            ("node", "ls", "--fooo"),
            125,
            "unknown flag: --fooo\n\nUsage:  swarmlet node ls [OPTIONS]\n\n"
            "Run 'swarmlet node ls --help' for more information\n",
        ),
    ],
)
def test_mistakes_are_told_as_docker_does(args: tuple[str, ...], code: int, text: str) -> None:
    result = run(*args)

    assert (result.exit_code, result.stdout, result.stderr) == (code, "", text)


def test_noun_alone_prints_its_help() -> None:
    result = run("service")

    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:  swarmlet service COMMAND\n")
    assert "Fetch the logs of a service or task" in result.stdout


def test_help_says_when_a_create_is_done() -> None:
    result = run("service", "create", "--help")

    assert "Waits until all tasks run" in result.stdout
    assert "--update-max-failure-ratio float" in result.stdout


@pytest.mark.parametrize("args", [["--help"], ["service", "create", "--help"], ["node", "--help"]])
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom swarmlet.cli.main import cli\n"
        f"try:\n    cli.main({args!r}, prog_name='swarmlet')\nexcept SystemExit:\n    pass\n"
        f"sys.exit(' '.join(m for m in {HEAVY!r} if m in sys.modules) or 0)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_exist(shell: str) -> None:
    result = run("completion", shell)

    assert result.exit_code == 0
    assert "_SWARMLET_COMPLETE" in result.stdout


def test_completion_offers_commands_and_flags() -> None:
    done = process(_SWARMLET_COMPLETE="bash_complete", COMP_WORDS="swarmlet service cr", COMP_CWORD="2")

    assert "plain,create" in done.stdout


def test_output_that_nobody_reads_any_more_is_no_error(daemon: FakeDaemon) -> None:
    command = f"'{sys.executable}' -m swarmlet service create --help | head -n 1"

    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)

    assert done.stdout == "Usage:  swarmlet service create [OPTIONS] IMAGE [COMMAND] [ARG...]\n"
    assert done.stderr == ""


def test_registry_credentials_are_sent_only_when_asked(daemon: FakeDaemon, tmp_path: Path) -> None:
    from swarmlet.api import pb

    (tmp_path / "config.json").write_text('{"auths": {"reg.example:5000": {"auth": "bWU6c2VjcmV0"}}}')
    environment = {"DOCKER_CONFIG": str(tmp_path)}

    daemon.run("service", "create", "-d", "reg.example:5000/app", env=environment)
    daemon.run("service", "create", "-d", "--with-registry-auth", "reg.example:5000/app", env=environment)

    without, with_auth = (
        r.spec.task_template.container_spec.pull_auth for r in daemon.asked(pb.CreateServiceRequest)
    )
    assert without == b""
    assert len(with_auth) > 20
