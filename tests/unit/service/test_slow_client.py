"""Clients that stop reading, over real sockets: told why if they wake up in time, gone for good if not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.edge import middleware, slow_client
from service.edge.connection import HttpConnection
from service.edge.middleware import Edge
from service.edge.observability import RequestMetrics
from service.edge.server_sent import EventStream, server_sent
from service.settings import Settings
from tests.harness.http_app import events_of

pytestmark = pytest.mark.anyio

EVENT = server_sent("state", {"padding": "x" * 60_000}, sequence=7)
MOST_IN_SYSTEM_BYTES = 64 << 20  # what the system's own buffers may take at both ends
TIMEOUT_S = 0.3
WHOLE = bytes(MOST_IN_SYSTEM_BYTES + (8 << 20))


class Server:
    """A server whose `/events` never end, whose `/file` does not either, and whose `/whole` is sent at once."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.num_told = 0
        self.is_ended = asyncio.Event()
        edge = Edge(self._app, settings=Settings(), metrics=RequestMetrics(CollectorRegistry()))
        self.uvicorn = uvicorn.Server(
            uvicorn.Config(
                edge,
                http=HttpConnection,
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
                timeout_keep_alive=1,
            )
        )

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/events":
            await EventStream(self._events())(scope, receive, send)
            return
        if scope["path"] == "/whole":
            await Response(WHOLE)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})

    async def _events(self) -> AsyncGenerator[bytes]:
        try:
            while True:
                self.num_told += 1
                yield EVENT
        finally:
            self.is_ended.set()

    @property
    def connections(self) -> list[HttpConnection]:
        return list(self.uvicorn.server_state.connections)  # type: ignore[arg-type]

    async def until_dropped(self) -> HttpConnection:
        """Return the one connection once all that its client will find is on its way."""
        await asyncio.wait_for(self.is_ended.wait(), 60)
        (connection,) = self.connections
        async with asyncio.timeout(60):
            while not connection.cycle.response_complete:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        return connection

    async def until_gone(self) -> None:
        async with asyncio.timeout(60):
            while self.connections:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    for module in (middleware, slow_client):
        monkeypatch.setattr(module, "SLOW_CLIENT_TIMEOUT_S", TIMEOUT_S)
    server = Server()
    serving = asyncio.create_task(server.uvicorn.serve(sockets=[server.listener]))
    while not server.uvicorn.started:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)
    yield server
    server.uvicorn.should_exit = True
    await serving


async def asked(server: Server, path: str) -> socket.socket:
    """Return a connection whose client has asked for `path` and reads nothing."""
    client = socket.create_connection(("127.0.0.1", server.port))
    client.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(client, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return client


async def read(client: socket.socket) -> bytes:
    """Return the body that a chunked answer has when it is read on until its connection closes."""
    reader, writer = await asyncio.open_connection(sock=client)
    await reader.readuntil(b"\r\n\r\n")
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    assert await reader.read() == b"\r\n"  # the end of the answer, and of the connection
    writer.close()
    return body


async def test_a_client_that_wakes_up_reads_what_was_on_its_way_and_why_there_is_no_more(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    client = await asked(server, "/events")
    connection = await server.until_dropped()
    held_bytes = connection.transport.get_write_buffer_size()

    told = events_of((await asyncio.wait_for(read(client), 60)).decode())

    *events, (kind, id_, reason) = told
    assert (kind, id_, reason["code"], reason["retryable"]) == ("dropped", None, "slow_client", True)
    assert "Last-Event-ID" in reason["detail"]
    assert len(events) in (server.num_told, server.num_told - 1)  # the last one was held back, whole
    assert {event[:2] for event in events} == {("state", "7")}
    assert held_bytes < (64 << 10) + 2 * len(EVENT)
    assert server.num_told * len(EVENT) < MOST_IN_SYSTEM_BYTES
    await server.until_gone()
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


async def test_a_client_that_sleeps_on_is_gone_for_good(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_client, "LAST_READ_S", TIMEOUT_S)
    client = await asked(server, "/events")
    await server.until_dropped()

    await server.until_gone()

    client.close()


async def test_a_client_that_sleeps_does_not_hold_up_the_end_of_the_server(server: Server) -> None:
    client = await asked(server, "/events")
    await server.until_dropped()

    server.uvicorn.should_exit = True
    await server.until_gone()

    client.close()


async def test_what_is_left_of_another_answer_is_not_kept(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    client = await asked(server, "/file")
    async with asyncio.timeout(60):
        while not server.connections:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)

    await server.until_gone()

    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]
    client.close()


async def test_a_client_that_reads_nothing_of_a_whole_answer_is_gone_too(server: Server) -> None:
    client = await asked(server, "/whole")
    async with asyncio.timeout(60):
        while not any(each.transport.get_write_buffer_size() for each in server.connections):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)

    await server.until_gone()
    client.close()


async def test_a_client_that_reads_a_whole_answer_slowly_gets_all_of_it(server: Server) -> None:
    client = await asked(server, "/whole")
    loop, num_bytes = asyncio.get_running_loop(), 0
    began_s = loop.time()
    while part := await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 60):
        num_bytes += len(part)
        await asyncio.sleep(TIMEOUT_S / 6)
    assert num_bytes > len(WHOLE)
    assert loop.time() - began_s > 1 + 4 * TIMEOUT_S  # far past the end of keeping it alive
    client.close()


async def test_a_stream_behind_an_answer_that_nobody_reads_is_not_begun(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    client, loop = await asked(server, "/whole"), asyncio.get_running_loop()
    await loop.sock_sendall(client, b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    await asyncio.sleep(3 * TIMEOUT_S)

    answered = b""
    with contextlib.suppress(ConnectionResetError):
        while part := await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 60):
            answered += part
    client.close()

    assert answered.count(b"HTTP/1.1") == 1
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]
