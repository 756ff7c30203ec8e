"""A PostgreSQL server that takes connections and never answers: everyone is told in time, and it goes on after."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import QueuePool

from service.app import create_app
from service.edge.auth import hash_secret, new_secret
from service.errors import StoreUnavailable
from service.experiment import State
from service.ports import Role, TokenRecord
from service.store import SqlStore, migrations
from tests.conformance.postgres import PostgresServer
from tests.fakes.control_plane import ControlPlane
from tests.harness.http_app import START, assert_problem

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

WAIT_S = 0.5
ANSWER_S = WAIT_S + 1.0  # what a server has to answer in
STREAM = "/experiments/{experiment_id}/events"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        migrations.upgrade(server.address())
        yield server


@pytest.fixture
async def plane(server: PostgresServer, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    plane = ControlPlane(database=server.address(), home=tmp_path)
    await plane.store.close()
    plane.store = SqlStore(server.address(), clock=plane.clock, wait_s=WAIT_S)
    plane.start_dispatcher("only")
    yield plane
    before = set(threading.enumerate())
    await plane.store.close()
    assert not [each for each in before & set(threading.enumerate()) if each.name.startswith("database")]


async def answers_to(*calls: Awaitable[Any]) -> list[Any]:
    """Return what came of calls, errors included; while the server is frozen, that it comes at all is the proof."""
    async with asyncio.timeout(60):
        return await asyncio.gather(*calls, return_exceptions=True)


async def test_a_frozen_server_keeps_no_caller_and_no_thread(server: PostgresServer, plane: ControlPlane) -> None:
    experiment_id = await plane.submit()
    pool = plane.store._database.readers.engine.pool
    assert isinstance(pool, QueuePool)
    with server.frozen():
        # More at once than there are connections: those who wait for one are told as well.
        told = await answers_to(*(plane.store.get(experiment_id) for _ in range(50)))
        assert {type(answer) for answer in told} == {StoreUnavailable}

        asking = asyncio.create_task(answers_to(plane.store.get(experiment_id)))
        await asyncio.sleep(0)
        (refused,) = await answers_to(plane.store.get(experiment_id))
        assert isinstance(refused, StoreUnavailable)
        assert not asking.done()  # one asks for all
        (answer,) = await asking
        assert isinstance(answer, StoreUnavailable)
        async with asyncio.timeout(60):
            while pool.checkedout():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.05)

    assert (await until_it_answers(plane, experiment_id)).id == experiment_id
    # Connections are made anew: who waits for one may be refused once more.
    found = await asyncio.gather(*(until_it_answers(plane, experiment_id) for _ in range(50)))
    assert {each.id for each in found} == {experiment_id}
    assert pool.checkedout() == 0


async def test_every_route_answers_while_the_server_is_frozen_and_the_dispatcher_goes_on_after(
    server: PostgresServer, plane: ControlPlane
) -> None:
    experiment_id, headers = await plane.submit(), await admin(plane.store)
    app = create_app(
        settings=plane.settings, store=plane.store, cluster=plane.cluster, tracking=plane.tracking, blobs=plane.blobs
    )
    stop = asyncio.Event()
    feed = asyncio.create_task(app.state.services.feed.run(stop))
    http = httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8000", headers=headers, timeout=60
    )
    async with http:
        assert (await http.get("/version")).status_code == 200  # known from now on
        with server.frozen():
            calls = routes(app)
            requests = (
                http.request(verb, url_of(path, experiment_id), json=body_of((verb, path))) for verb, path in calls
            )
            found = dict(zip(calls, await answers_to(*requests), strict=True))
            for call, answer in found.items():
                assert not isinstance(answer, BaseException), (call, answer)
                if answer.status_code == 503:
                    assert_problem(answer, 503)
                else:
                    assert answer.status_code < 500, (call, answer.text)
            codes = {call: answer.status_code for call, answer in found.items()}
            assert (codes["GET", "/livez"], codes["GET", "/metrics"], codes["GET", "/readyz"]) == (200, 200, 503)
            kept = [call for call, code in codes.items() if "{experiment_id}" in call[1] and code != 503]
            assert kept == []
            with pytest.raises(StoreUnavailable):
                await plane.dispatcher.step()

        await until_it_answers(plane, experiment_id)
        assert (await http.get(f"/experiments/{experiment_id}")).status_code == 200
        assert (await plane.step_until(experiment_id, State.SUCCEEDED)).attempt == 1
    stop.set()
    await feed


async def until_it_answers(plane: ControlPlane, experiment_id: str) -> Any:
    """Return the experiment once the server, which runs again, has answered for it."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await plane.store.get(experiment_id)
            except StoreUnavailable:
                await asyncio.sleep(0.05)


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Return every method and path of the app that is one request and one answer."""
    return [
        (method, route.path)
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods or ())
    ]


def url_of(path: str, experiment_id: str) -> str:
    plain = path.replace("{path:path}", "p")
    plain = plain.format(experiment_id=experiment_id, trial_id="t0000", token_id="t", name="n")  # noqa: S106 - a path
    return plain + "?ids=a,b" if path == "/compare" else plain


def body_of(call: tuple[str, str]) -> dict[str, Any] | None:
    """Return a body that is good enough to come to the database."""
    method, path = call
    if method in ("GET", "DELETE"):
        return None
    if path == "/experiments":
        return {"name": "small", "kind": "pretrain", "spec": {"data": {"dataset": "openmoji"}}}
    bodies: dict[str, dict[str, Any]] = {
        "/tokens": {"name": "t", "role": "viewer", "owner": "ada"},
        "/experiments/{experiment_id}": {"priority": 1},
        "/experiments/{experiment_id}/continue": {"epochs": 9},
    }
    return bodies.get(path, {})


async def admin(store: SqlStore) -> dict[str, str]:
    """Make a token for everything and return the header that carries it."""
    secret = new_secret()
    token = TokenRecord(
        id="tok_frozen",
        name="test",
        owner="ada",
        role=Role.ADMIN,
        created_at=START,
        expires_at=None,
        revoked_at=None,
    )
    await store.create_token(token, hash_secret(secret))
    return {"Authorization": f"Bearer {secret}"}
