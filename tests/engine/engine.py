"""A Docker Engine of one's own, and an image without a registry. For tests and benchmarks; needs root."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import requests

DEFAULT_SOCKET = Path("/var/run/docker.sock")
IMAGE = "swarmlet-test:1"
_START_SECONDS_MAX = 60
_STOP_SECONDS_MAX = 30
_APPLETS = (
    "sh",
    "sleep",
    "echo",
    "cat",
    "ls",
    "id",
    "env",
    "nc",
    "httpd",
    "touch",
    "stat",
    "hostname",
    "true",
    "false",
)


class EngineMissing(Exception):
    """Why no engine can be had here."""


class PrivateEngine:
    """dockerd with all of its state in one directory, and a bridge of its own."""

    def __init__(self, directory: Path) -> None:
        """`directory` has a short path, as a socket's path has at most 107 characters."""
        self.directory = directory
        self.url = f"unix://{directory / 'docker.sock'}"
        self._bridge = f"swltest{os.getpid() % 100_000}"
        self._subnet = f"10.213.{os.getpid() % 256}.1/24"
        self._cgroup_parent = self._bridge
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers. Raises EngineMissing with the end of its log when it does not."""
        _ip("link", "add", self._bridge, "type", "bridge", may_fail=True)
        _ip("addr", "replace", self._subnet, "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        (self.directory / "docker.pid").unlink(missing_ok=True)
        (self.directory / "daemon.json").write_text("{}")
        with (self.directory / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "dockerd",
                    f"--config-file={self.directory / 'daemon.json'}",
                    f"--data-root={self.directory / 'data'}",
                    f"--exec-root={self.directory / 'exec'}",
                    f"--pidfile={self.directory / 'docker.pid'}",
                    f"--host={self.url}",
                    f"--bridge={self._bridge}",
                    "--iptables=false",
                    "--ip6tables=false",
                    "--exec-opt=native.cgroupdriver=cgroupfs",
                    f"--cgroup-parent=/{self._cgroup_parent}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS_MAX
        while not _answers(self.url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = (self.directory / "dockerd.log").read_text(errors="replace").splitlines()[-3:]
                raise EngineMissing("dockerd does not start: " + " / ".join(last))
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9, of its containerd too: its containers go on until it is started again."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._end_containerd(signal.SIGKILL)

    def stop(self) -> None:
        """Removes every container, ends the engine, and removes its bridge."""
        with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
            client = docker.APIClient(base_url=self.url, version="auto", timeout=_STOP_SECONDS_MAX)
            for container in client.containers(all=True):
                client.remove_container(container["Id"], force=True, v=True)
            client.close()
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._end_containerd(signal.SIGTERM)
        self._end_shims()
        _ip("link", "del", self._bridge, may_fail=True)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            mounted_at = line.split()[1]
            if mounted_at.startswith(str(self.directory)):
                subprocess.run(["umount", "--lazy", mounted_at], check=False, capture_output=True)
        for root in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")):
            with contextlib.suppress(OSError):
                (root / self._cgroup_parent).rmdir()

    def _end_shims(self) -> None:
        """Where the engine did not come up again, nobody else ends what its containers ran under."""
        for command_line in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if f"\0-address\0{self.directory}/" in command_line.read_text(errors="replace"):
                    os.kill(int(command_line.parent.name), signal.SIGKILL)

    def _end_containerd(self, signal_number: int) -> None:
        """dockerd leaves its containerd behind when it is killed, and its next start trips over the files."""
        directory = self.directory / "exec" / "containerd"
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            pid = int((directory / "containerd.pid").read_text())
            deadline = time.monotonic() + _STOP_SECONDS_MAX
            while "containerd" in Path(f"/proc/{pid}/comm").read_text() and time.monotonic() < deadline:
                os.kill(pid, signal_number)
                time.sleep(0.05)
        for file in directory.glob("containerd*"):
            if file.suffix in (".pid", ".sock", ".ttrpc"):
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def start_engine(directory: Path) -> Iterator[PrivateEngine]:
    """A private engine that is gone when the context ends. Raises EngineMissing with the reason."""
    if os.getuid() != 0:
        raise EngineMissing("no engine answers at the default socket, and starting one needs root")
    for program in ("dockerd", "containerd", "ip"):
        if shutil.which(program) is None:
            raise EngineMissing(f"no engine answers at the default socket, and {program} is not installed")
    engine = PrivateEngine(directory)
    try:
        engine.start()
        yield engine
    finally:
        engine.stop()
        shutil.rmtree(directory, ignore_errors=True)


def default_engine_answers() -> bool:
    return DEFAULT_SOCKET.exists() and _answers(f"unix://{DEFAULT_SOCKET}")


def make_image(url: str, name: str = IMAGE) -> str:
    """Imports a small image of busybox and returns its name. Raises EngineMissing without busybox."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise EngineMissing("no test image: busybox is not installed (Debian's busybox-static)")
    client = docker.APIClient(base_url=url, version="auto")
    try:
        client.import_image_from_data(
            _root_file_system(Path(busybox)), repository=name.partition(":")[0], tag=name.partition(":")[2]
        )
    finally:
        client.close()
    return name


def _root_file_system(busybox: Path) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for directory in ("bin", "etc", "tmp", "proc", "sys", "dev", "run"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        program = busybox.read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
        for applet in _APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
        for name, text in {
            "passwd": "root:x:0:0::/:/bin/sh\nweb:x:100:101::/:/bin/sh\n",
            "group": "root:x:0:\n",
        }.items():
            entry = tarfile.TarInfo(f"etc/{name}")
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return data.getvalue()


def _answers(url: str) -> bool:
    client = docker.APIClient(base_url=url, version="1.24", timeout=5)
    try:
        return bool(client.ping())
    except (docker.errors.DockerException, requests.RequestException):
        return False
    finally:
        client.close()


def _ip(*arguments: str, may_fail: bool = False) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0 and not may_fail:
        raise EngineMissing(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
