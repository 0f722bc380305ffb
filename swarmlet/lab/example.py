"""The service that the lab suggests, and the one that the demo and the measurements run.

In the process runtime it is a small server in Python, bound to its task's address. On a
Docker Engine it is busybox' server in an image that is made on the spot, because a lab
must work without a registry.
"""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
from pathlib import Path

import docker.errors

from swarmlet.api.errors import FailedPrecondition
from swarmlet.lab import containers

TARGET_PORT = 8000
PUBLISHED_PORT = 8080
IMAGE = "swarmlet-lab/web:1"
_FALLBACK_IMAGE = "busybox:stable"
# A task's PATH; what is elsewhere must be named in full.
_TASK_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A shell as the first process ends at SIGTERM only where it says so.
_BUSYBOX_SERVER = (
    'mkdir -p /www; echo "web version $VERSION: $HOSTNAME" > /www/index.html; '
    f"trap 'exit 0' TERM; httpd -f -p {TARGET_PORT} -h /www & wait"
)


def suggestion(runtime: str) -> list[str]:
    """Arguments for `swarmlet` that a newcomer can paste."""
    create = ["service", "create", "--name", "web", "--replicas", "3"]
    if runtime == "docker":
        return [*create, "--publish", f"{PUBLISHED_PORT}:80", "nginx:alpine"]
    server = [python(), "-m", "http.server", "--bind", "{{.Task.Address}}", str(TARGET_PORT)]
    return [*create, "--publish", f"{PUBLISHED_PORT}:{TARGET_PORT}", "web", *server]


def prepare(runtime: str, directory: Path) -> list[str]:
    """Image and command of the web service, made ready for use: `service create ... IMAGE COMMAND ARG...`.

    Raises FailedPrecondition when an engine has no image to run. Blocking.
    """
    if runtime == "docker":
        return [image(), "sh", "-c", _BUSYBOX_SERVER]
    script = directory / "web.py"
    shutil.copyfile(Path(__file__).with_name("web.py"), script)
    return ["web", python(), str(script), "{{.Task.Address}}", str(TARGET_PORT)]


def python() -> str:
    """What a task can call Python by."""
    return "python3" if shutil.which("python3", path=_TASK_PATH) else sys.executable


def image() -> str:
    """The name of an image with busybox on the default engine, made or pulled if need be. Blocking."""
    with containers.engine() as client:
        try:
            client.images.get(IMAGE)
            return IMAGE
        except docker.errors.ImageNotFound:
            binary = _static_busybox()
        if binary is not None:
            repository, _, tag = IMAGE.partition(":")
            client.api.import_image_from_data(_root_file_system(binary), repository=repository, tag=tag)
            return IMAGE
        try:
            client.images.pull(_FALLBACK_IMAGE)
        except docker.errors.DockerException as error:
            raise FailedPrecondition(
                "no image for the web service: install the package busybox-static, "
                f"or let the engine pull {_FALLBACK_IMAGE} ({error})"
            ) from error
        return _FALLBACK_IMAGE


def _static_busybox() -> Path | None:
    found = shutil.which("busybox", path=_TASK_PATH)
    if found is None:
        return None
    # A dynamic program names its loader at its beginning, and an empty image has none.
    return None if b"/ld-" in Path(found).read_bytes()[:4096] else Path(found)


def _root_file_system(busybox: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("bin", "tmp", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        archive.add(busybox.resolve(), "bin/busybox")
        for applet in (
            "sh",
            "httpd",
            "sleep",
            "mkdir",
            "echo",
            "cat",
            "ls",
            "env",
            "hostname",
            "wget",
            "true",
        ):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
    return packed.getvalue()
