"""The asynchronous client against the service itself; the synchronous one is in `tests/e2e/`."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from service.client import AsyncClient, ClientError
from tests.harness.http_app import HttpApp, pretrain_body

pytestmark = pytest.mark.anyio


async def test_an_experiment_is_submitted_watched_and_read(service: HttpApp) -> None:
    async with AsyncClient("http://127.0.0.1:8000", transport=httpx2.ASGITransport(service.app)) as client:
        planned = await client.validate(pretrain_body())
        created = await client.submit(pretrain_body(), idempotency_key="k")
        assert (await client.submit(pretrain_body(), idempotency_key="k"))["id"] == created["id"]
        assert planned["plan"]["steps"] == created["plan"]["steps"]

        async def watched() -> list[tuple[str, str | None]]:
            return [(event.type, event.data.get("state")) async for event in client.watch(created["id"])]

        watching = asyncio.create_task(watched())
        await service.until_watched()
        await service.run(created["id"], num_steps=3)
        await service.succeed(created["id"])
        story = await asyncio.wait_for(watching, 60)

        states = [state for kind, state in story if kind == "state"]
        assert states == ["queued", "starting", "running", "succeeded"]
        assert [kind for kind, _ in story].count("metric") == 3
        assert (await client.wait(created["id"], timeout_s=5))["state"] == "succeeded"
        assert [each["id"] async for each in client.experiments(state="succeeded")] == [created["id"]]
        assert len((await client.metrics(created["id"], keys=["loss"]))["series"]["loss"]) == 3
        with pytest.raises(ClientError) as refused:
            await client.pause(created["id"])
        assert refused.value.status == 409
