"""Sweeps over HTTP, from the request to the answer; only training is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from service.dispatch.job import attempt_job
from service.experiment import State
from tests.harness.http_app import HttpApp, assert_problem, pretrain_body
from trainer.context import JobDocument, TrialContext
from tune_spaces.driver.outcome import Outcome
from tune_spaces.driver.supply import TrialSupply
from tune_spaces.driver.sweep import run_sweep
from tune_spaces.spec import SweepSpec

pytestmark = pytest.mark.anyio


def sweep_body(**spec: Any) -> dict[str, Any]:
    return {
        "name": "sweep",
        "kind": "sweep",
        "spec": {"base": {"data": {"dataset": "shapes"}, "batch_size": 32}, **spec},
    }


async def run(service: HttpApp, body: dict[str, Any], *, failing: Callable[[str], bool] = lambda _: False) -> str:
    """Submit a sweep and let its driver run it; a trial's accuracy is its number in hundredths."""
    created = await service.submit(body)
    await service.move(created["id"], State.STARTING, State.RUNNING)
    record = await service.store.get(created["id"])
    settings = service.app.state.services.settings
    entrypoint = attempt_job(record, settings, attempt=1, environ={}).entrypoint
    document = JobDocument.decode(entrypoint.split()[-1]).model_copy(update={"mlflow_uri": None})

    def run_trials(
        sweep: SweepSpec,
        document: JobDocument,
        supply: TrialSupply,
        *,
        num_trials: int,
        contexts: Callable[[str], TrialContext],
        on_start: Callable[[str], None],
        on_end: Callable[[Outcome], None],
        should_end: Callable[[], bool],
    ) -> None:
        while (trial := supply.take()) is not None:
            on_start(trial.id)
            if failing(trial.id):
                reason = {"code": "non_finite_loss", "message": "the loss became nan", "retryable": False}
                on_end(Outcome(trial=trial.id, state="failed", reason=reason))
                continue
            value = int(trial.id.removeprefix("t")) / 100
            metrics = dict.fromkeys(("linear_accuracy", "knn_accuracy"), value)
            marker = {"state": "succeeded", "step": 9, "attempt": 1, "metrics": metrics}
            service.blobs.write(contexts(trial.id).key("encoder.zip"), f"encoder of {trial.id}".encode())
            service.blobs.write(contexts(trial.id).key("complete.json"), json.dumps(marker).encode())
            on_end(Outcome(trial=trial.id, state="ended"))

    end = run_sweep(document, service.blobs, run_trials=run_trials)
    service.write(created["id"], "complete.json", {"state": end.state, "attempt": 1, "best": end.best})
    await service.move(created["id"], State.FAILED if end.state == "failed" else State.SUCCEEDED)
    return f"/experiments/{created['id']}"


async def test_the_encoder_of_a_sweep_is_that_of_its_best_trial(service: HttpApp) -> None:
    url = await run(service, sweep_body(space={"loss.temperature": {"choice": [0.1, 0.2, 0.5]}}))

    assert (await service.http.get(f"{url}/encoder")).content == b"encoder of t0002"
    (encoder,) = (await service.http.get("/encoders")).json()["items"]
    assert (encoder["trial"], encoder["metric"], encoder["value"]) == ("t0002", "knn_accuracy", 0.02)
    assert (await service.http.get(url)).json()["best"]["trial"] == "t0002"


async def test_the_answer_of_a_study_is_read_in_every_form(service: HttpApp) -> None:
    url = await run(service, sweep_body(study="colour-shortcut", size="smoke"))

    report = (await service.http.get(f"{url}/report")).json()
    assert report["study"] == "colour-shortcut"
    assert report["sentence"]
    assert report["verdict"] in ("holds", "does_not", "cannot_tell")
    page = await service.http.get(f"{url}/report?format=html")
    assert "<svg" in page.text
    assert f'class="answer {report["verdict"]}"' in page.text
    assert page.headers["content-security-policy"].startswith("sandbox")
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    assert (await service.http.get(f"{url}/report", headers=browser)).text == page.text
    assert (await service.http.get(f"{url}/report?format=json", headers=browser)).json() == report
    text = (await service.http.get(f"{url}/report?format=md")).text
    for name in ("report.png", "report-histograms.png"):
        picture = await service.http.get(f"{url}/{name}")
        assert picture.headers["content-type"] == "image/png"
        assert picture.content.startswith(b"\x89PNG")
        assert f"]({name})" in text, "Markdown shows the pictures that lie beside it"


async def test_a_picture_is_there_when_the_report_is_and_only_where_there_is_one(service: HttpApp) -> None:
    waiting = f"/experiments/{(await service.submit(sweep_body(study='loss', size='smoke')))['id']}"
    plain = await run(service, sweep_body(space={"epochs": {"choice": [1, 2]}}))
    pretraining = f"/experiments/{(await service.submit(pretrain_body()))['id']}"

    assert_problem(await service.http.get(f"{waiting}/report.png"), 409, "report_not_ready")
    assert (await service.http.get(f"{plain}/report.png")).status_code == 200
    assert_problem(await service.http.get(f"{plain}/report-histograms.png"), 404, "picture_not_found")
    assert_problem(await service.http.get(f"{pretraining}/report.png"), 404, "picture_not_found")


async def test_who_waits_for_the_report_of_a_cancelled_sweep_is_told_that_there_is_none(service: HttpApp) -> None:
    created = await service.submit(sweep_body(study="loss", size="smoke"))
    url = f"/experiments/{created['id']}"
    assert_problem(await service.http.get(f"{url}/report"), 409, "report_not_ready")
    await service.move(created["id"], State.CANCELLED)

    for name in ("report", "report.png", "report-histograms.png"):
        answer = await service.http.get(f"{url}/{name}")
        assert_problem(answer, 404, "report_not_found")
        assert answer.json()["state"] == "cancelled"
        assert f"{url}/trials" in answer.json()["detail"]


async def test_a_trial_that_failed_says_why(service: HttpApp) -> None:
    space = {"loss.temperature": {"choice": [0.1, 0.2]}}
    url = await run(service, sweep_body(space=space), failing=lambda trial: trial == "t0001")

    good, bad = (await service.http.get(f"{url}/trials")).json()["items"]
    assert (good["state"], good["reason"]) == ("succeeded", None)
    assert bad["state"] == "failed"
    assert bad["reason"]["code"] == "non_finite_loss"
    assert (await service.http.get(f"{url}/trials/t0001")).json()["reason"]["message"] == "the loss became nan"
    assert "- t0001: the loss became nan" in (await service.http.get(f"{url}/report?format=md")).text


async def test_a_sweep_without_a_trial_that_worked_has_no_encoder_and_a_report_of_why(service: HttpApp) -> None:
    url = await run(service, sweep_body(space={"epochs": {"choice": [1, 2]}}), failing=lambda _: True)

    assert_problem(await service.http.get(f"{url}/encoder"), 409, "encoder_not_ready")
    report = (await service.http.get(f"{url}/report")).json()
    assert report["failures"] == dict.fromkeys(("t0000", "t0001"), "the loss became nan")
    assert report["best"] is None


async def test_every_study_is_listed_with_what_it_asks_varies_and_costs(service: HttpApp) -> None:
    studies = (await service.http.get("/studies")).json()["items"]

    assert len(studies) == 9
    for study in studies:
        assert study == (await service.http.get(f"/studies/{study['name']}")).json()
        assert {"question", "source", "axes", "metric", "figure", "paper", "sizes", "description"} <= study.keys()
        assert study["paper"]["finding"]
        assert list(study["sizes"]) == ["smoke", "small", "paper"]
        for size in study["sizes"].values():
            assert {"trials", "seeds", "axes", "fixed", "cost"} <= size.keys()
