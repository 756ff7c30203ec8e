"""Continuing: what a longer pretraining and a wider sweep are made of, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from service.dispatch.job import attempt_job
from service.experiment import State
from service.intake.descendants import body_of_continuation
from service.schemas import ContinueRequest
from service.settings import Settings
from tests.harness.http_app import HttpApp, assert_problem, pointers, pretrain_body
from trainer.context import JobDocument, ParentTrial

pytestmark = pytest.mark.anyio


def sweep_body(**spec: Any) -> dict[str, Any]:
    base = {"base": pretrain_body()["spec"], "space": {"loss.temperature": {"choice": [0.1, 0.5]}}}
    return {"name": "sweep", "kind": "sweep", "spec": {**base, **spec}}


async def ended(service: HttpApp, body: dict[str, Any]) -> str:
    """Submit, come to a checkpoint and cancel; return the path of its continuations."""
    experiment_id = (await service.submit(body))["id"]
    await service.move(experiment_id, State.CANCELLED)
    service.leave_checkpoint(experiment_id)
    return f"/experiments/{experiment_id}/continue"


async def parent_of_job(service: HttpApp, experiment_id: str) -> ParentTrial | None:
    record = await service.store.get(experiment_id)
    job = attempt_job(record, Settings(), attempt=1, environ={})
    return JobDocument.decode(job.entrypoint.split()[-1]).parent


@pytest.mark.parametrize(
    ("body", "more"),
    [(pretrain_body(), {"epochs": 4}), (sweep_body(search="random", num_samples=2), {"max_trials": 4})],
    ids=["pretrain", "sweep"],
)
async def test_a_job_is_told_the_trial_that_it_starts_from(
    service: HttpApp, body: dict[str, Any], more: dict[str, int]
) -> None:
    url = await ended(service, body)

    child = (await service.http.post(url, json=more)).json()

    assert await parent_of_job(service, child["id"]) == ParentTrial(experiment_id=url.split("/")[2], trial_id="t0000")


async def test_what_left_no_checkpoint_is_not_continued_and_the_way_out_is_one(service: HttpApp) -> None:
    grandparent = (await ended(service, pretrain_body())).split("/")[2]
    parent = (await service.http.post(f"/experiments/{grandparent}/continue", json={"epochs": 4})).json()["id"]
    await service.move(parent, State.CANCELLED)

    refused = await service.http.post(f"/experiments/{parent}/continue", json={"epochs": 6})

    assert_problem(refused, 409, "checkpoint_missing")
    assert parent in refused.json()["detail"]
    assert f"continue {grandparent}" in refused.json()["detail"]
    assert (await service.http.get("/experiments?state=queued")).json()["items"] == []
    way_out = '{"overrides": {"epochs": 6}}'
    assert way_out in refused.json()["detail"]
    assert (await service.http.post(f"/experiments/{parent}/clone", json=json.loads(way_out))).status_code == 202


async def test_nothing_is_continued_while_storage_cannot_say_from_where(service: HttpApp) -> None:
    url = await ended(service, pretrain_body())
    service.blobs.is_down = True

    assert_problem(await service.http.post(url, json={"epochs": 4}), 503, "storage_unavailable")

    service.blobs.is_down = False
    assert (await service.http.post(url, json={"epochs": 4})).status_code == 202


async def test_a_grid_has_all_its_points_and_says_what_to_do_instead(service: HttpApp) -> None:
    url = await ended(service, sweep_body())

    answer = await service.http.post(url, json={"max_trials": 10})

    assert_problem(answer, 422, "spec_invalid")
    assert pointers(answer) == ["/max_trials"]
    assert "clone the sweep" in answer.json()["detail"]


async def test_a_sweep_grows_by_whole_points_under_every_seed(service: HttpApp) -> None:
    url = await ended(service, sweep_body(search="random", num_samples=2, seeds=[0, 1, 2], limits={"max_trials": 6}))

    too_few = await service.http.post(url, json={"max_trials": 8})
    child = (await service.http.post(url, json={"max_trials": 10})).json()

    assert pointers(too_few) == ["/max_trials"]
    assert too_few.json()["errors"][0]["allowed"] == ">= 9"
    assert child["plan"]["trials"] == 9
    assert child["spec"]["limits"]["max_trials"] == 10


async def test_a_sweep_that_an_earlier_version_resolved_goes_on_under_its_seeds(service: HttpApp) -> None:
    study = {"base": {**pretrain_body()["spec"], "seed": 5}, "study": "temperature", "size": "small"}
    spec = {**study, "search": "random", "num_samples": 2}
    url = await ended(service, {"name": "sweep", "kind": "sweep", "spec": spec})
    record = await service.store.get(url.split("/")[2])
    assert record.spec["seeds"] == [5, 6, 7]
    earlier = replace(record, spec={**record.spec, "seeds": [0, 1, 2]})

    same, other = (
        body_of_continuation(one, ContinueRequest(max_trials=9), blobs=service.blobs) for one in (record, earlier)
    )

    assert "seeds" not in same["spec"]
    assert other["spec"]["seeds"] == [0, 1, 2]
    assert (await service.submit(other))["spec"]["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("more", [{"epochs": 200_000}, {"epochs": 4, "max_trials": 4}, {}, {"epochs": 2}])
async def test_a_length_that_cannot_be_is_refused_where_it_was_written(service: HttpApp, more: dict[str, int]) -> None:
    url = await ended(service, pretrain_body())

    answer = await service.http.post(url, json=more)

    assert_problem(answer, 422)
    assert pointers(answer) == ["/epochs"]


async def test_a_budget_that_the_longer_run_exceeds_is_told_at_its_length(service: HttpApp) -> None:
    url = await ended(service, pretrain_body(limits={"max_images": 1000}))

    answer = await service.http.post(url, json={"epochs": 50})

    assert pointers(answer) == ["/epochs"]
    assert answer.json()["errors"][0]["code"] == "over_budget"


async def test_a_key_replays_a_continuation_whatever_became_of_its_parent(service: HttpApp) -> None:
    parent = await service.submit()
    url, key = f"/experiments/{parent['id']}/continue", {"Idempotency-Key": "k"}
    await service.move(parent["id"], State.PAUSED)
    service.leave_checkpoint(parent["id"])
    first = await service.http.post(url, json={"epochs": 4}, headers=key)
    await service.move(parent["id"], State.QUEUED)

    again = await service.http.post(url, json={"epochs": 4}, headers=key)

    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert_problem(await service.http.post(url, json={"epochs": 4}), 409, "experiment_active")


async def test_a_sweep_over_values_with_conditions_is_judged_value_by_value(service: HttpApp) -> None:
    space = {
        "loss.kind": {"choice": ["nt_xent", "margin"]},
        "scaling.gpus_per_worker": [
            {"choice": [0], "when": {"loss.kind": ["nt_xent"]}},
            {"choice": [0, 1], "when": {"loss.kind": ["margin"]}},
        ],
    }
    answer = await service.http.post("/experiments", json=sweep_body(space=space))

    assert pointers(answer) == ["/spec/space/scaling.gpus_per_worker/1/choice/1"]


async def test_a_sweeps_plan_passes_its_warnings_on(service: HttpApp) -> None:
    space = {"loss.temperature": {"choice": [0.1, 0.5]}, "epochs": {"choice": [2, 4]}}

    created = await service.submit(sweep_body(space=space, scheduler="asha"))

    assert any("asha" in warning for warning in created["plan"]["warnings"])
    assert created["plan"]["time_s"] is None
