"""Connections on which no request comes about: dropped in time, told why, and nobody else is kept from theirs."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.edge import connection as connection_module
from service.edge.connection import HttpConnection

pytestmark = pytest.mark.anyio

HEAD_TIMEOUT_S = 0.3
MOST = 8
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def is_over() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch, is_over: asyncio.Event) -> AsyncIterator[int]:
    """Yield the port of an app whose `/slow` answers when it `is_over`."""
    monkeypatch.setattr(connection_module, "HEAD_TIMEOUT_S", HEAD_TIMEOUT_S)

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await is_over.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(
        app, http=HttpConnection, limit_concurrency=MOST, lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)
    yield port
    is_over.set()
    server.should_exit = True
    await serving


async def sent(port: int, *parts: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
    return reader, writer


async def answer(port: int, *parts: bytes) -> bytes:
    """Return all that comes until the connection is closed."""
    reader, writer = await sent(port, *parts)
    try:
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


def problem(text: bytes) -> tuple[int, Any, Any]:
    """Return the status, the code and what is said about coming back."""
    head, _, body = text.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return int(head.split()[1]), json.loads(body)["code"], headers.get("retry-after")


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_heads_that_do_not_end_keep_nobody_from_being_served(
    port: int, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "HEAD_TIMEOUT_S", 600.0)
    slow = [await sent(port, begun) for _ in range(2 * MOST)]
    assert (await answer(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).endswith(b"ok")
    for _, writer in slow:
        writer.close()


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_a_head_that_does_not_end_is_given_up(port: int, begun: bytes) -> None:
    assert problem(await answer(port, begun)) == (408, "head_too_slow", None)


async def test_bytes_that_trickle_in_do_not_move_the_deadline(port: int) -> None:
    reader, writer = await sent(port, b"GET / HTTP/1.1\r\n")

    async def trickle() -> None:
        while not writer.is_closing():
            writer.write(b"a: b\r\n")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    text = await asyncio.wait_for(reader.read(4096), 60)
    trickling.cancel()
    writer.close()

    assert problem(text)[:2] == (408, "head_too_slow")


async def test_an_answer_may_take_its_time_and_a_kept_connection_has_a_deadline_for_its_next_head(
    port: int, is_over: asyncio.Event
) -> None:
    reader, writer = await sent(port, GET.replace(b"/ ", b"/slow "))
    await asyncio.sleep(2 * HEAD_TIMEOUT_S)
    is_over.set()
    assert b"ok" in await asyncio.wait_for(reader.readuntil(b"ok"), 60)
    writer.write(GET)
    assert b"ok" in await asyncio.wait_for(reader.readuntil(b"ok"), 60)

    writer.write(GET[:9])

    assert problem(await asyncio.wait_for(reader.read(), 60))[1] == "head_too_slow"
    writer.close()


async def test_what_is_no_http_is_told_so(port: int) -> None:
    assert problem(await answer(port, b"\x00\x01 nonsense\r\n\r\n")) == (400, "request_malformed", None)


async def test_past_the_most_requests_at_once_everyone_is_asked_to_come_back(port: int, is_over: asyncio.Event) -> None:
    waiting = [await sent(port, GET.replace(b"/ ", b"/slow ")) for _ in range(MOST)]
    await asyncio.sleep(0.1)
    refused = await answer(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert problem(refused) == (503, "overloaded", "5")

    is_over.set()

    for reader, writer in waiting:
        assert await asyncio.wait_for(reader.readuntil(b"ok"), 60)
        writer.close()
    assert (await answer(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).endswith(b"ok")
