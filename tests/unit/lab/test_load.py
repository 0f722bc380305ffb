"""The load counts what really happened to its requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from swarmlet.lab.load import Load, fetch

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


def answering(answer: bytes, *, times: int = 1) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(times):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

    return handle


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if true():
                return
            await asyncio.sleep(0.01)


async def test_whole_answers_count_with_what_they_said() -> None:
    async with serving(answering(HELLO)) as url:
        outcome = await fetch(url)

    assert (outcome.ok, outcome.failed) == (1, 0)
    assert outcome.bodies == {"hello": 1}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-", "closed inside the headers"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhel", "closed inside the body"),
        (b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n", "status 503"),
    ],
)
async def test_anything_but_a_whole_answer_is_a_failure_with_its_reason(answer: bytes, reason: str) -> None:
    async with serving(answering(answer)) as url:
        outcome = await fetch(url)

    assert outcome.failures == {reason: 1}


async def test_a_refused_connection_is_a_failure() -> None:
    async with serving(answering(HELLO)) as url:
        pass

    outcome = await fetch(url)

    assert outcome.failed == 1
    assert "connect" in outcome.reasons()


async def test_a_server_that_never_answers_fails_by_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as url:
        outcome = await fetch(url, timeout=0.1)

    assert outcome.failures == {"timed out": 1}


async def test_requests_go_to_every_target_in_turn() -> None:
    async with serving(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")) as a:
        async with serving(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb")) as b:
            async with Load([a, b], rate=500) as load:
                await until(lambda: load.outcome.total >= 40)

    assert load.outcome.failed == 0
    assert abs(load.outcome.bodies["a"] - load.outcome.bodies["b"]) <= 2


async def test_a_kept_connection_carries_many_requests() -> None:
    connections = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with pytest.raises(asyncio.IncompleteReadError):
            await answering(HELLO, times=1000)(reader, writer)

    async with serving(counted) as url:
        async with Load([url], rate=50, keep_alive=True) as load:
            await until(lambda: load.outcome.total >= 10)

    assert load.outcome.failed == 0
    assert connections < load.outcome.ok


async def test_a_connection_closed_while_idle_is_replaced_and_not_a_failure() -> None:
    async with serving(answering(HELLO, times=1)) as url:
        async with Load([url], rate=50, keep_alive=True) as load:
            await until(lambda: load.outcome.total >= 10)

    assert load.outcome.failed == 0


async def test_a_target_that_was_left_counts_no_failures() -> None:
    async with serving(answering(HELLO)) as alive:
        async with serving(answering(HELLO)) as dying:
            async with Load([alive, dying], rate=200) as load:
                await until(lambda: load.outcome.total >= 10)
                load.leave(dying)
                before = load.outcome.total
                await until(lambda: load.outcome.total >= before + 10)

    assert load.outcome.failed == 0


async def test_a_load_needs_something_to_do() -> None:
    with pytest.raises(ValueError, match="targets"):
        Load([], rate=1)
    with pytest.raises(ValueError, match="http"):
        Load(["ftp://x/"], rate=1)
