from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from swarmlet.api import pb
from swarmlet.runtime.base import LogRecord
from swarmlet.runtime.process_logs import LINE_BYTES_MAX, LogClock, LogFile, read_logs
from tests.unit.runtime.builders import eventually

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def read(
    directory: Path, *, clock: LogClock | None = None, ended: asyncio.Event | None = None, **options: object
) -> list[LogRecord]:
    with ThreadPoolExecutor(1) as executor:
        records = read_logs(
            directory,
            pb.LogOptions(**{"tail": -1, **options}),  # type: ignore[arg-type]
            clock=clock or LogClock(),
            ended=ended or asyncio.Event(),
            now=lambda: NOON,
            executor=executor,
        )
        return [record async for record in records]


def write(path: Path, text: str, when: datetime = NOON) -> None:
    with path.open("a") as file:
        file.write(text)
    os.utime(path, (when.timestamp(), when.timestamp()))


async def test_streams_are_merged_by_time(tmp_path: Path) -> None:
    clock = LogClock()
    clock.note(tmp_path, NOON)
    for second, (name, text) in enumerate([("stdout", "a\n"), ("stderr", "b\n"), ("stdout", "c\n")]):
        for each in ("stdout", "stderr"):
            (tmp_path / f"{each}.log").touch()
        clock.note(tmp_path, NOON + timedelta(seconds=second))
        write(tmp_path / f"{name}.log", text)
        clock.note(tmp_path, NOON + timedelta(seconds=second + 1))

    records = await read(tmp_path, clock=clock)

    assert [(r.data, r.stream) for r in records] == [
        (b"a", pb.LOG_STREAM_STDOUT),
        (b"b", pb.LOG_STREAM_STDERR),
        (b"c", pb.LOG_STREAM_STDOUT),
    ]


async def test_only_the_stream_that_was_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "stdout.log", "out\n")
    write(tmp_path / "stderr.log", "err\n")

    assert [r.data for r in await read(tmp_path, stderr=True)] == [b"err"]


async def test_tail_gives_the_last_lines_and_none_for_zero(tmp_path: Path) -> None:
    write(tmp_path / "stdout.log", "".join(f"{n}\n" for n in range(5000)))

    assert [r.data for r in await read(tmp_path, tail=2)] == [b"4998", b"4999"]
    assert await read(tmp_path, tail=0) == []
    assert len(await read(tmp_path)) == 5000


async def test_since_leaves_out_what_is_older(tmp_path: Path) -> None:
    clock = LogClock()
    write(tmp_path / "stdout.log", "old\n", NOON - timedelta(hours=1))
    clock.note(tmp_path, NOON)
    write(tmp_path / "stdout.log", "new\n")
    clock.note(tmp_path, NOON)
    since = pb.LogOptions().since
    since.FromDatetime(NOON - timedelta(minutes=1))

    records = await read(tmp_path, clock=clock, since=since)

    assert [(r.data, r.timestamp) for r in records] == [(b"new", NOON)]


async def test_last_line_needs_no_newline(tmp_path: Path) -> None:
    write(tmp_path / "stdout.log", "a\n\nlast")

    assert [r.data for r in await read(tmp_path)] == [b"a", b"", b"last"]


async def test_follow_gives_new_lines_until_the_task_has_ended(tmp_path: Path) -> None:
    ended = asyncio.Event()
    log = tmp_path / "stdout.log"
    write(log, "before\n")
    seen: list[bytes] = []

    async def follow() -> None:
        with ThreadPoolExecutor(1) as executor:
            async for record in read_logs(
                tmp_path,
                pb.LogOptions(follow=True, tail=-1),
                clock=LogClock(),
                ended=ended,
                now=lambda: NOON,
                executor=executor,
            ):
                seen.append(record.data)

    async def has_seen(count: int) -> bool:
        return len(seen) == count

    following = asyncio.create_task(follow())
    await eventually(lambda: has_seen(1))
    write(log, "during\nha")
    await eventually(lambda: has_seen(2))
    write(log, "lf\nlast")
    ended.set()
    await following

    assert seen == [b"before", b"during", b"half", b"last"]


async def test_file_that_grew_too_large_loses_its_older_half(tmp_path: Path) -> None:
    clock = LogClock()
    log = tmp_path / "stdout.log"
    write(log, "".join(f"{n:09}\n" for n in range(100_000)))

    clock.note(tmp_path, NOON, bytes_max=400_000)
    write(log, "after\n")

    lines = [r.data for r in await read(tmp_path, clock=clock)]
    assert log.stat().st_blocks * 512 <= 400_000
    assert 15_000 < len(lines) <= 25_000
    assert lines[-2:] == [b"000099999", b"after"]
    assert all(len(line) == 9 for line in lines[:-1])


def test_absurdly_long_lines_are_cut(tmp_path: Path) -> None:
    (tmp_path / "stdout.log").write_bytes(b"x" * (2 * LINE_BYTES_MAX + 5) + b"\ny\n")

    file = LogFile(tmp_path / "stdout.log", pb.LOG_STREAM_STDOUT, LogClock())
    records = list(file.lines())

    assert max(len(r.data) for r in records) == LINE_BYTES_MAX
    assert b"".join(r.data for r in records) == b"x" * (2 * LINE_BYTES_MAX + 5) + b"y"


@given(st.lists(st.lists(st.binary(max_size=8).map(lambda b: b.replace(b"\n", b"")), max_size=4), max_size=6))
def test_lines_come_out_as_they_were_written_however_they_are_read(bursts: list[list[bytes]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "stdout.log"
        path.touch()
        file = LogFile(path, pb.LOG_STREAM_STDOUT, LogClock())
        seen: list[bytes] = []
        for burst in bursts:
            with path.open("ab") as stream:
                for line in burst:
                    stream.write(line + b"\n")
            seen.extend(record.data for record in file.lines(NOON))

    assert seen == [line for burst in bursts for line in burst]
