"""A loopback address of its own for every task of the process runtime.

Called by the process runtime. Addresses are claimed on disk, as tasks outlive the
daemon. Two owners on one machine are kept apart by hashing: give them ranges of
their own where even a rare collision (which fails one task, whose replacement then
gets another address) is not wanted.
"""

from __future__ import annotations

import hashlib
import ipaddress
from pathlib import Path

from swarmlet.runtime.base import TaskFailed

DEFAULT_BASE = "127.64.0.0/10"
_ATTEMPTS_MAX = 1000


class LoopbackAddresses:
    """Claims below `directory`, one file per address. Blocking; safe from several threads."""

    def __init__(self, directory: Path, owner: str, base: str = DEFAULT_BASE) -> None:
        self._directory = directory
        self._owner = owner
        self._network = ipaddress.IPv4Network(base)
        if not self._network.is_loopback or self._network.num_addresses < 4:
            raise ValueError(f"address range {base} is not a loopback range of at least four addresses")

    def claim(self, task_id: str) -> str:
        """An address that no task of this directory has. Raises TaskFailed when the range is used up."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        start = int.from_bytes(hashlib.sha256(f"{self._owner}\0{task_id}".encode()).digest()[:8], "big")
        usable = self._network.num_addresses - 2
        for attempt in range(min(_ATTEMPTS_MAX, usable)):
            address = str(self._network[1 + (start + attempt) % usable])
            claim = self._directory / address
            try:
                with claim.open("x") as file:
                    file.write(task_id)
            except FileExistsError:
                if claim.read_text() == task_id:
                    return address
                continue
            return address
        raise TaskFailed(f"no free loopback address in {self._network} after {_ATTEMPTS_MAX} attempts")

    def release(self, address: str) -> None:
        (self._directory / address).unlink(missing_ok=True)

    def release_task(self, task_id: str) -> None:
        """Releases what the task claimed, for one whose address is not known."""
        if not self._directory.is_dir():
            return
        for claim in self._directory.iterdir():
            if claim.read_text() == task_id:
                claim.unlink(missing_ok=True)
