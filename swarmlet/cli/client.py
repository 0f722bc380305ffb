"""The connection to a daemon's local socket: calls, retries, and what the user sees when they fail.

Every command that needs a daemon opens one `Client`. Reads and writes are repeated
while the cluster has no leader or an outcome is unknown, until `--timeout` has passed,
or until a daemon says that a majority is gone and the user did not ask to wait for it;
a write keeps its operation id, so that it is done once. Synchronous: a command is one
thread that waits for one thing.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from swarmlet.cli.command import CliError

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# After the variable above, which its C core reads when it is loaded.
import grpc

from swarmlet.api.v1.control_pb2_grpc import ControlStub, LocalSwarmStub
from swarmlet.api.wire import MAJORITY_LOST_TRAILER, MESSAGE_OPTIONS, STALE_METADATA

if TYPE_CHECKING:
    from swarmlet.cli.options import GlobalOptions

ATTEMPT_SECONDS_MAX = 12.0
"""One attempt's share of the timeout, a little more than a daemon takes to say that it has no leader."""
PAUSE_SECONDS_FIRST = 0.05
PAUSE_SECONDS_MAX = 1.0

_GRPC_DEADLINE = "Deadline Exceeded"
"""gRPC's own words, when it was this side that stopped waiting."""

_REPEATABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

Answer = TypeVar("Answer")


class Operation(Protocol):
    """A request that carries an operation id."""

    operation_id: str


class DaemonError(CliError):
    """The daemon refused or failed; `code` is gRPC's."""

    def __init__(self, text: str, code: grpc.StatusCode) -> None:
        super().__init__(f"Error response from daemon: {text}")
        self.text = text
        self.code = code

    @property
    def is_not_found(self) -> bool:
        return self.code is grpc.StatusCode.NOT_FOUND


class CannotConnect(CliError):
    def __init__(self, address: str) -> None:
        super().__init__(
            f"Cannot connect to the swarmlet daemon at {address}. Is the swarmlet daemon running?"
        )


class MayNotConnect(CliError):
    def __init__(self, address: str) -> None:
        super().__init__(
            f"permission denied while trying to connect to the swarmlet daemon socket at {address}: "
            "run as root, or join the group that owns the socket"
        )


@dataclass(frozen=True)
class Address:
    path: Path

    @classmethod
    def parse(cls, text: str) -> Address:
        """Of `unix:///path` or a path. Raises CliError for anything else."""
        scheme, separator, rest = text.partition("://")
        if separator and scheme != "unix":
            raise CliError(f'unable to parse host "{text}": want unix:///path/to/socket or a path')
        path = Path(rest if separator else text.removeprefix("unix:"))
        if not path.name:
            raise CliError(f'unable to parse host "{text}": want unix:///path/to/socket or a path')
        return cls(path.absolute())

    def __str__(self) -> str:
        return f"unix://{self.path}"

    def check(self) -> None:
        """Raises CannotConnect or MayNotConnect when nobody listens there."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(5)
            try:
                probe.connect(str(self.path))
            except PermissionError:
                raise MayNotConnect(str(self)) from None
            except OSError:
                raise CannotConnect(str(self)) from None


class Client:
    """Used as a context manager. `control` and `local` are the plain gRPC stubs, for streams."""

    def __init__(
        self, address: Address, timeout_seconds: float, *, is_patient: bool = False, stale: bool = False
    ) -> None:
        address.check()
        self._is_patient = is_patient
        self._is_stale = stale
        self._address = address
        self._timeout_seconds = timeout_seconds
        self._channel = grpc.insecure_channel(
            f"unix:{address.path}",
            options=[
                *MESSAGE_OPTIONS,
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.default_authority", "localhost"),
            ],
        )
        self.control = ControlStub(self._channel)
        self.local = LocalSwarmStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def read(self, method: Callable[..., Answer], request: Any) -> Answer:
        """The answer to a call that changes nothing. Raises DaemonError."""
        if self._is_stale:
            return self._repeat(partial(method, metadata=((STALE_METADATA, "1"),)), request)
        return self._repeat(method, request)

    def write(self, method: Callable[..., Answer], request: Operation) -> Answer:
        """The answer to a write, made once however often it is tried. Raises DaemonError."""
        if self._is_stale:
            raise CliError("--stale is for commands that show something; this one makes a change")
        request.operation_id = secrets.token_hex(16)
        return self._repeat(method, request, is_write=True)

    def once(
        self, method: Callable[..., Answer], request: Any, timeout_seconds: float | None = None
    ) -> Answer:
        """For calls that must not be repeated. Raises DaemonError."""
        try:
            return method(request, timeout=timeout_seconds or self._timeout_seconds)
        except grpc.RpcError as error:
            raise self.explain(error) from None

    def until_current(self, attempt: Callable[[], Answer]) -> Answer:
        """`attempt` (read, change, write that version), again while others write in between."""
        deadline = time.monotonic() + self._timeout_seconds
        pause = PAUSE_SECONDS_FIRST
        while True:
            try:
                return attempt()
            except DaemonError as error:
                if error.code is not grpc.StatusCode.ABORTED or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)

    def _repeat(self, method: Callable[..., Answer], request: Any, *, is_write: bool = False) -> Answer:
        unknown: grpc.RpcError | None = None
        deadline = time.monotonic() + self._timeout_seconds
        pause = PAUSE_SECONDS_FIRST
        while True:
            left = deadline - time.monotonic()
            try:
                return method(request, timeout=max(0.001, min(left, ATTEMPT_SECONDS_MAX)))
            except grpc.RpcError as error:
                if error.code() not in _REPEATABLE:
                    raise self.explain(error) from None
                if is_write and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    # That nothing was done by a later attempt says nothing of this one.
                    unknown = error
                if time.monotonic() + pause > deadline or self._is_hopeless(error):
                    raise self.explain(unknown or error) from None
            time.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)

    def _is_hopeless(self, error: grpc.RpcError) -> bool:
        """Whether a majority is gone, which lasts, and the user did not ask to wait for it."""
        trailers: Any = error.trailing_metadata() or ()
        is_lost = any(key == MAJORITY_LOST_TRAILER for key, _ in trailers)
        return is_lost and not self._is_patient

    def explain(self, error: grpc.RpcError) -> CliError:
        """What the user is told of a failed call."""
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            try:
                self._address.check()
            except CliError as unreachable:
                return unreachable
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and error.details() == _GRPC_DEADLINE:
            return DaemonError("no answer in time; whether a change was made is not known", error.code())
        return DaemonError(error.details() or error.code().name.lower().replace("_", " "), error.code())


def connect(options: GlobalOptions) -> Client:
    """Raises CannotConnect at once when no daemon listens."""
    return Client(
        Address.parse(options.host),
        options.timeout_seconds,
        is_patient=options.is_patient,
        stale=options.stale,
    )
