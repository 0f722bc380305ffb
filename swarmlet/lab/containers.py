"""What a lab's nodes run on the machine's Docker Engine, told apart by labels.

Used only for labs with the docker runtime. Every container that a node made carries
the node's id as `io.swarmlet.owner`. Blocking calls, from a thread or a command.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker
import docker.errors

from swarmlet.api.errors import Unavailable

DEFAULT_ENGINE = "unix:///var/run/docker.sock"
OWNER_LABEL = "io.swarmlet.owner"
_PING_SECONDS = 2.0


def engine_url() -> str:
    """Docker's own rule: DOCKER_HOST, or else the default socket."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_ENGINE


def engine_answers() -> bool:
    """Whether a Docker Engine on this machine answers this user."""
    scheme, _, path = engine_url().partition("://")
    if scheme != "unix":
        return False
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PING_SECONDS)
        try:
            connection.connect(path)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
            return b" 200 " in connection.recv(64)
        except OSError:
            return False


@contextlib.contextmanager
def engine() -> Iterator[Any]:
    """A client of the default engine; raises Unavailable when it does not answer."""
    try:
        client = docker.DockerClient(base_url=engine_url(), version="auto", timeout=30)
    except docker.errors.DockerException as error:
        raise Unavailable(f"no Docker Engine answers at {engine_url()}: {error}") from error
    try:
        yield client
    finally:
        client.close()


def kill(node_id: str) -> None:
    _each(node_id, lambda container: container.kill(), status="running")
    _each(node_id, lambda container: container.kill(), status="paused")


def pause(node_id: str) -> None:
    _each(node_id, lambda container: container.pause(), status="running")


def unpause(node_id: str) -> None:
    _each(node_id, lambda container: container.unpause(), status="paused")


def remove(node_id: str) -> None:
    _each(node_id, lambda container: container.remove(force=True, v=True))


def remove_image(name: str) -> None:
    """Removes an image unless somebody, another lab say, still has a container of it."""
    with engine() as client:
        try:
            client.images.remove(name)
        except docker.errors.APIError as error:
            if error.status_code not in (404, 409):
                raise Unavailable(f"Docker Engine: {error.explanation}") from error


def addresses(node_id: str) -> list[str]:
    """The IPv4 addresses of the node's running containers, on every engine network they are on."""
    found = []
    with engine() as client:
        for container in _owned(client, node_id, "running"):
            networks = container.attrs["NetworkSettings"]["Networks"]
            found += [each["IPAddress"] for each in networks.values() if each["IPAddress"]]
    return sorted(found)


def _owned(client: Any, node_id: str, status: str | None) -> list[Any]:
    filters = {"label": f"{OWNER_LABEL}={node_id}"} | ({"status": status} if status else {})
    # Containers may go while they are being listed.
    return list(client.containers.list(all=True, filters=filters, ignore_removed=True))


def _each(node_id: str, act: Callable[[Any], object], status: str | None = None) -> None:
    """`act` on all of the node's containers at once; one that went meanwhile is done already."""
    with engine() as client:
        owned = _owned(client, node_id, status)
        if not owned:
            return
        with ThreadPoolExecutor(min(16, len(owned))) as pool:
            for outcome in [pool.submit(act, container) for container in owned]:
                try:
                    outcome.result()
                except docker.errors.NotFound:
                    continue
                except docker.errors.APIError as error:
                    # "is not running": it ended between the list and the call.
                    if error.status_code != 409:
                        raise Unavailable(f"Docker Engine: {error.explanation}") from error
