"""The app as it runs: its loops start, survive crashes and end; a bad start is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.app import build
from service.background import keep_running
from service.errors import SettingsError, StoreUnavailable
from service.ports import Page
from service.settings import Settings
from tests.harness.http_app import HttpApp, http_app

pytestmark = pytest.mark.anyio


async def test_a_submitted_experiment_is_dispatched_and_its_forced_deletion_kept(service: HttpApp) -> None:
    async with service.app.router.lifespan_context(service.app):
        created = await service.submit()
        following = asyncio.create_task(service.http.get(f"/experiments/{created['id']}/events"))
        while not service.cluster.jobs:  # noqa: ASYNC110 - the dispatcher submits when it gets to it
            await asyncio.sleep(0.01)
        deleted = await service.http.delete(f"/experiments/{created['id']}?force=true")
        assert deleted.status_code in (202, 204)
        while not following.done():
            service.cluster.clock.advance(1)
            await asyncio.sleep(0.05)
        assert following.result().status_code == 200
        gone = f"/experiments/{created['id']}"
        while (await service.http.get(gone)).status_code != 404:  # noqa: ASYNC110 - deleted when it is noticed
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("num_turns", range(4))
async def test_the_app_ends_while_a_deletion_waits_and_has_news_in_that_moment(
    service: HttpApp, num_turns: int
) -> None:
    running = service.app.router.lifespan_context(service.app)
    await running.__aenter__()
    created = await service.submit()
    while not service.cluster.jobs:  # noqa: ASYNC110 - the dispatcher submits when it gets to it
        await asyncio.sleep(0.01)
    deleted = await service.http.delete(f"/experiments/{created['id']}?force=true")
    assert deleted.status_code == 202
    await asyncio.sleep(0.05)

    service.app.state.services.feed.ring(created["id"])
    for _ in range(num_turns):
        await asyncio.sleep(0)
    ending = asyncio.create_task(running.__aexit__(None, None, None))
    done, _ = await asyncio.wait([ending], timeout=60)

    assert done
    ending.result()


async def test_loops_end_where_the_start_fails(service: HttpApp, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(_: object) -> Page:
        raise StoreUnavailable("The database does not answer; try again later.")

    monkeypatch.setattr(service.store, "list", unreachable)
    before = asyncio.all_tasks()

    with pytest.raises(StoreUnavailable):
        async with service.app.router.lifespan_context(service.app):
            pass

    assert asyncio.all_tasks() == before


async def test_what_cannot_be_closed_is_told_and_the_rest_closed(
    service: HttpApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(service.cluster, "close", fails)
    with capture_logs() as logs:
        async with service.app.router.lifespan_context(service.app):
            pass

    assert [line["part"] for line in logs if line["event"] == "not_closed"] == ["cluster"]
    with pytest.raises(StoreUnavailable, match="closed"):
        await service.store.get("exp_0")


async def test_an_open_address_without_a_token_does_not_start(tmp_path: Path, migrated_database: Path) -> None:
    async with http_app(tmp_path, database=migrated_database, host="192.0.2.1") as service:
        with pytest.raises(SettingsError, match="SIMCLR_BOOTSTRAP_TOKEN"):
            async with service.app.router.lifespan_context(service.app):
                pass


def test_without_ray_and_mlflow_nothing_is_built(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="simclr serve"):
        build(Settings(home=tmp_path))


async def test_build_migrates_the_embedded_database_and_makes_real_adapters(tmp_path: Path) -> None:
    addresses = {"ray_address": "http://127.0.0.1:1", "mlflow_uri": "http://127.0.0.1:1"}
    app = build(Settings(home=tmp_path, **addresses))  # type: ignore[arg-type]  # both are strings
    services = app.state.services

    assert await services.store.list_tokens() == []
    for adapter in (services.store, services.cluster, services.tracking):
        await adapter.close()


async def test_a_loop_that_crashes_is_started_again() -> None:
    stop, num_starts = asyncio.Event(), 0

    async def loop(ends: asyncio.Event) -> None:
        nonlocal num_starts
        num_starts += 1
        if num_starts < 3:
            raise RuntimeError("a bug")
        await ends.wait()

    running = asyncio.create_task(keep_running("loop", loop, stop, first_backoff_s=0.001))
    while num_starts < 3:  # noqa: ASYNC110 - counted by the loop itself
        await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(running, 60)
    assert num_starts == 3
