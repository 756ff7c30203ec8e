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


async def sweep_plan(service: HttpApp, **spec: Any) -> dict[str, Any]:
    body = {"name": "s", "kind": "sweep", "spec": {"base": pretrain_body()["spec"], **spec}}
    answer = await service.http.post("/experiments?validate_only=true", json=body)
    plan: dict[str, Any] = answer.json()["plan"]
    return plan


async def test_a_sweeps_plan_says_how_long_it_takes_by_as_many_at_a_time_as_fit(service: HttpApp) -> None:
    space = {"loss.temperature": {"choice": [0.1, 0.2, 0.5, 1.0]}}
    assert (await sweep_plan(service, space=space))["time_s"] is None
    await finish(service, 64.0)
    await speeds(service).refresh()

    plan = await sweep_plan(service, space=space, max_concurrent_trials=2)
    assert plan["trials_at_once"] == 2
    assert plan["time_s"] == plan["images"] / 64.0 / 2
    suggested = await sweep_plan(service, space=space, search="optuna", num_samples=6, max_concurrent_trials=1)
    assert suggested["time_s"] == pytest.approx(6 / 4 * plan["time_s"] * 2)
    unlike = {"scaling.num_workers": {"choice": [1, 2]}}
    assert (await sweep_plan(service, space=unlike))["time_s"] is None, "two workers were never seen"


async def test_no_sweep_is_shorter_than_its_longest_trial(service: HttpApp) -> None:
    await finish(service, 64.0)
    await speeds(service).refresh()

    plan = await sweep_plan(service, space={"epochs": {"choice": [1, 1000]}}, max_concurrent_trials=2)

    assert plan["time_s"] == plan["images"] * 1000 / 1001 / 64.0


async def test_a_sweeps_plan_names_the_memory_of_its_largest_trial(service: HttpApp) -> None:
    plan = await sweep_plan(service, space={"batch_size": {"choice": [64, 16]}, "encoder.width": {"choice": [2, 1]}})
    largest = pretrain_body(batch_size=64, encoder={"width": 2})
    answer = await service.http.post("/experiments?validate_only=true", json=largest)

    assert plan["memory_bytes"] == answer.json()["plan"]["memory_bytes"]
