"""The credentials of `docker login` for an image's registry, for `--with-registry-auth`."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from swarmlet.cli.command import CliError

_HUB = "https://index.docker.io/v1/"


def registry_of(image: str) -> str:
    """The registry's key in Docker's configuration file."""
    first, slash, _ = image.partition("/")
    if (
        slash
        and ("." in first or ":" in first or first == "localhost")
        and first not in ("docker.io", "index.docker.io")
    ):
        return first
    return _HUB


def registry_auth(image: str) -> bytes:
    """What Docker sends as X-Registry-Auth, or nothing when the user has no credentials.

    Raises CliError when the configuration or its helper cannot be read.
    """
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return b""
    except (OSError, ValueError):
        raise CliError(f"cannot read the registry credentials in {path}") from None
    registry = registry_of(image)
    helper = config.get("credHelpers", {}).get(registry) or config.get("credsStore")
    found = _from_helper(helper, registry) if helper else _from_file(config, registry, path)
    if not found:
        return b""
    return base64.urlsafe_b64encode(json.dumps({**found, "serveraddress": registry}).encode())


def _from_file(config: dict[str, Any], registry: str, path: Path) -> dict[str, str]:
    entry = config.get("auths", {}).get(registry, {})
    if "identitytoken" in entry:
        return {"identitytoken": entry["identitytoken"]}
    if "auth" not in entry:
        return {}
    try:
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
    except ValueError:
        raise CliError(f"the credentials for {registry} in {path} are not valid base64") from None
    return {"username": user, "password": password}


def _from_helper(helper: str, registry: str) -> dict[str, str]:
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=registry.encode(),
            capture_output=True,
            timeout=30,
            check=False,
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise CliError(f"docker-credential-{helper} gave no credentials for {registry}") from None
    if not answer:
        return {}
    if answer.get("Username") == "<token>":
        return {"identitytoken": answer["Secret"]}
    return {"username": answer["Username"], "password": answer["Secret"]}
