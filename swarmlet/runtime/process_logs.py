"""What a task's program wrote: two files, bounded, read as lines with times.

Called by the process runtime. The program writes raw lines straight into
`stdout.log` and `stderr.log`, so that it does not depend on a daemon being alive. The
daemon notes once a second how far each file has grown (`LogClock`): a line is as old
as the first note that covers it, or as the file's last write when no daemon looked.

A file above 10 MiB loses its older half: its blocks are given back by punching a
hole, so offsets stay and nothing the program writes meanwhile is lost. On file
systems without holes it starts again from empty.
"""

from __future__ import annotations

import asyncio
import bisect
import ctypes
import heapq
import itertools
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor
from datetime import UTC, datetime
from pathlib import Path

from swarmlet.api import pb
from swarmlet.runtime.base import LogRecord

LOG_FILES = {pb.LOG_STREAM_STDOUT: "stdout.log", pb.LOG_STREAM_STDERR: "stderr.log"}
LOG_BYTES_MAX = 10 << 20
LINE_BYTES_MAX = 64 << 10
"""Longer lines are cut into records of this size."""
_FOLLOW_SECONDS = 0.1
_CHUNK_BYTES = 256 << 10
_BATCH_RECORDS = 1000
_NOTES_MAX = 4096
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None, use_errno=True)


class LogClock:
    """When the log files of one task had grown to which size. Written by the runtime once a second."""

    def __init__(self) -> None:
        self._notes: dict[int, list[tuple[int, datetime]]] = {stream: [] for stream in LOG_FILES}

    def note(self, directory: Path, now: datetime, bytes_max: int = LOG_BYTES_MAX) -> None:
        """Looks at the sizes and bounds the files. Blocking."""
        for stream, name in LOG_FILES.items():
            path = directory / name
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            notes = self._notes[stream]
            if notes and status.st_size < notes[-1][0]:
                notes.clear()
            if not notes:
                # The first look, maybe at the work of a program that ran while no daemon did.
                notes.append((status.st_size, datetime.fromtimestamp(status.st_mtime, UTC)))
            elif status.st_size > notes[-1][0]:
                notes.append((status.st_size, now))
            if len(notes) > _NOTES_MAX:
                del notes[: _NOTES_MAX // 2 : 2]
            if status.st_blocks * 512 > bytes_max:
                _drop_older_half(path, status.st_size, bytes_max // 2)

    def time_of(self, stream: int, line_start: int, written: datetime) -> datetime:
        """The time of a line that starts at this offset; `written` is when the file was last written to."""
        notes = self._notes[stream]
        index = bisect.bisect_right(notes, line_start, key=lambda note: note[0])
        return notes[index][1] if index < len(notes) else written


class LogFile:
    """Reads one file forward, line by line. Blocking."""

    def __init__(self, path: Path, stream: pb.LogStream.ValueType, clock: LogClock) -> None:
        self._path = path
        self._stream = stream
        self._clock = clock
        self._offset = 0
        self._rest = b""

    def lines(self, now: datetime | None = None) -> Iterator[LogRecord]:
        """Complete lines from where the last call stopped to the end.

        With `now`, they have just been written; else their age is what the clock knows.
        """
        try:
            file = self._path.open("rb", buffering=0)
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            written = datetime.fromtimestamp(status.st_mtime, UTC)
            if status.st_size < self._offset:
                self._offset, self._rest = 0, b""
            first = self._first_byte(file.fileno(), status.st_size)
            starts_torn = first > self._offset
            if starts_torn:
                self._offset, self._rest = first, b""
            while chunk := os.pread(file.fileno(), _CHUNK_BYTES, self._offset):
                position = self._offset - len(self._rest)
                self._offset += len(chunk)
                *complete, self._rest = (self._rest + chunk).split(b"\n")
                if len(self._rest) > LINE_BYTES_MAX:
                    complete.append(self._rest)
                    self._rest = b""
                for line in complete:
                    time = now or self._clock.time_of(self._stream, position, written)
                    position += len(line) + 1
                    if starts_torn:  # the end of a line whose beginning was dropped
                        starts_torn = False
                        continue
                    yield from self._records(time, line)

    def rest(self, now: datetime) -> Iterator[LogRecord]:
        """The last line, when it has no newline."""
        rest, self._rest = self._rest, b""
        if rest:
            yield from self._records(self._clock.time_of(self._stream, self._offset - 1, now), rest)

    def _records(self, time: datetime, line: bytes) -> Iterator[LogRecord]:
        for start in range(0, len(line) or 1, LINE_BYTES_MAX):
            yield LogRecord(time, self._stream, line[start : start + LINE_BYTES_MAX])

    @staticmethod
    def _first_byte(descriptor: int, size: int) -> int:
        try:
            return os.lseek(descriptor, 0, os.SEEK_DATA) if size else 0
        except OSError:
            return 0


async def read_logs(
    directory: Path,
    options: pb.LogOptions,
    *,
    clock: LogClock,
    ended: asyncio.Event,
    now: Callable[[], datetime],
    executor: Executor,
) -> AsyncIterator[LogRecord]:
    """The lines of a task, merged by time; with `follow`, until `ended` and everything was read.

    Neither stdout nor stderr asked for means both.
    """
    both = options.stdout == options.stderr
    wanted = {pb.LOG_STREAM_STDOUT: options.stdout or both, pb.LOG_STREAM_STDERR: options.stderr or both}
    files = [LogFile(directory / name, stream, clock) for stream, name in LOG_FILES.items() if wanted[stream]]
    since = options.since.ToDatetime(tzinfo=UTC) if options.HasField("since") else None
    loop = asyncio.get_running_loop()

    history = _history(files, options, since, now())
    while batch := await loop.run_in_executor(executor, _take, history):
        for record in batch:
            yield record
    if not options.follow:
        return
    while True:
        was_ended = ended.is_set()
        for record in await loop.run_in_executor(executor, _news, files, now(), was_ended):
            yield record
        if was_ended:
            return
        try:
            await asyncio.wait_for(ended.wait(), _FOLLOW_SECONDS)
        except TimeoutError:
            continue


def _history(
    files: list[LogFile], options: pb.LogOptions, since: datetime | None, now: datetime
) -> Iterator[LogRecord]:
    """Lazy: all of the reading happens where it is iterated."""
    merged: Iterable[LogRecord] = heapq.merge(
        *(_all_of(file, now, follow=options.follow) for file in files), key=lambda record: record.timestamp
    )
    wanted = (record for record in merged if since is None or record.timestamp >= since)
    yield from wanted if options.tail < 0 else deque(wanted, maxlen=options.tail)


def _all_of(file: LogFile, now: datetime, *, follow: bool) -> Iterator[LogRecord]:
    yield from file.lines()
    if not follow:
        yield from file.rest(now)


def _take(records: Iterator[LogRecord]) -> list[LogRecord]:
    return list(itertools.islice(records, _BATCH_RECORDS))


def _news(files: list[LogFile], now: datetime, ended: bool) -> list[LogRecord]:
    return [
        record
        for file in files
        for record in itertools.chain(file.lines(now), file.rest(now) if ended else ())
    ]


def _drop_older_half(path: Path, size: int, keep_bytes: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        length = ctypes.c_long(max(0, size - keep_bytes))
        if _libc.fallocate(descriptor, mode, ctypes.c_long(0), length) != 0:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
