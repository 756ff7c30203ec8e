"""Plans that say how long a pretraining takes, from those that went before."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import TrackingUnavailable
from service.speed_history import SpeedHistory
from tests.harness.http_app import HttpApp, pretrain_body

pytestmark = pytest.mark.anyio


def speeds(service: HttpApp) -> SpeedHistory:
    found: SpeedHistory = service.app.state.services.speeds
    return found


async def finish(service: HttpApp, rate: float | None, **spec: Any) -> None:
    created = await service.submit(pretrain_body(**spec))
    run = await service.run(created["id"])
    if rate is not None:
        service.log_points(run, "images_per_second", {1: 1.0, 3: rate})
    await service.succeed(created["id"])


async def planned_s(service: HttpApp, **spec: Any) -> float | None:
    answer = await service.http.post("/experiments?validate_only=true", json=pretrain_body(**spec))
    time_s: float | None = answer.json()["plan"]["time_s"]
    return time_s


async def test_the_median_of_those_alike_says_how_long_it_takes(service: HttpApp) -> None:
    assert await planned_s(service) is None
    for rate in (10.0, 64.0, 1000.0):
        await finish(service, rate)
    await finish(service, None)
    await finish(service, 5.0, encoder={"name": "resnet8"})

    await speeds(service).refresh()

    plan = (await service.http.post("/experiments?validate_only=true", json=pretrain_body())).json()["plan"]
    assert plan["time_s"] == plan["images"] / 64.0
    assert await planned_s(service, data={"dataset": "shapes", "image_size": 8}) is None
    assert await planned_s(service, scaling={"num_workers": 2}) is None
    assert await planned_s(service, loss={"temperature": 0.1}) == plan["time_s"]


async def test_a_deleted_experiment_is_forgotten_and_none_is_asked_for_twice(service: HttpApp) -> None:
    await finish(service, 64.0)
    await speeds(service).refresh()
    service.tracking.is_down = True
    await speeds(service).refresh()
    assert await planned_s(service) is not None

    for item in (await service.http.get("/experiments")).json()["items"]:
        await service.http.delete(f"/experiments/{item['id']}")
    await speeds(service).refresh()

    assert await planned_s(service) is None


async def test_what_mlflow_could_not_say_is_asked_again(service: HttpApp) -> None:
    await finish(service, 64.0)
    service.tracking.is_down = True
    with pytest.raises(TrackingUnavailable):
        await speeds(service).refresh()
    service.tracking.is_down = False

    await speeds(service).refresh()

    assert await planned_s(service) is not None
