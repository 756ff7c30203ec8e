"""What MLflow missed of a sweep that ended while it was away is sent later: its trials, then its parent run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from trainer.backfill import backfill
from trainer.context import JobDocument, TrialContext
from trainer.fence import take_fence
from trainer.mlflow_runs import RunDescription
from trainer.outbox import Outbox, Point
from trainer.parent_run import ParentRun
from trainer.storage import Storage, open_storage
from trainer.unrecorded import PARENT_RUN, unrecorded_runs
from tune_spaces.driver.outcome import Outcome
from tune_spaces.driver.supply import TrialSupply
from tune_spaces.driver.sweep import run_sweep
from tune_spaces.spec import SweepSpec, resolve

pytestmark = pytest.mark.slow  # MLflow makes its database

AWAY = "http://127.0.0.1:9"
SWEEP = SweepSpec.model_validate(
    {"base": {"data": {"dataset": "digits"}}, "space": {"loss.temperature": {"choice": [0.1, 0.5]}}}
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("trainer.parent_run.RETRY_EVERY_S", 0.1)
    monkeypatch.setattr("tune_spaces.driver.sweep.ParentRun", partial(ParentRun, drain_s=0.1))


def document(folder: Path, mlflow_uri: str) -> JobDocument:
    return JobDocument(
        experiment_id="exp_1",
        name="tau",
        kind="sweep",
        attempt=1,
        spec=resolve(SWEEP),
        storage=str(folder / "storage"),
        mlflow_uri=mlflow_uri,
        cache_dir=str(folder / "cache"),
    )


def trained_unrecorded(
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
    """Let each trial end with three points, a bundle and a marker, none of which MLflow has heard of."""
    storage = open_storage(document.storage)
    while (trial := supply.take()) is not None:
        on_start(trial.id)
        leave_trial(storage, contexts(trial.id), knn_accuracy=trial.spec.loss.temperature)
        on_end(Outcome(trial=trial.id, state="ended"))


def leave_trial(storage: Storage, context: TrialContext, **metrics: float) -> None:
    description = {"name": f"tau/{context.trial_id}", "params": {}, "tags": {}}
    storage.write(context.key("metrics/description.json"), json.dumps(description).encode())
    outbox = Outbox(storage, context.key("metrics/"), take_fence(storage, context))
    outbox.append_points([Point("loss", step, 1.0 / step, step) for step in (1, 2, 3)])
    storage.write(context.key("artifacts/encoder/encoder.json"), b"{}")
    outbox.append_artifact(key=context.key("artifacts/encoder/encoder.json"), path="encoder/encoder.json")
    marker: dict[str, Any] = {"state": "succeeded", "step": 3, "attempt": 1, "metrics": metrics, "is_recorded": False}
    marker |= {"mlflow_run_id": None, "bundle_sha256": f"{context.trial_id:0>64}"}
    storage.write(context.key("complete.json"), json.dumps(marker).encode())


def test_the_whole_story_of_a_sweep_is_recorded_when_mlflow_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path / "storage"))
    end = run_sweep(document(tmp_path, AWAY), storage, run_trials=trained_unrecorded)
    assert end.best is not None
    assert end.best["trial"] == "t0001"
    assert unrecorded_runs(storage, "exp_1") == ["t0000", "t0001", PARENT_RUN]

    monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts beside a database of its own
    back = document(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    assert backfill(back) == []
    assert backfill(back) == []

    client = MlflowClient(str(back.mlflow_uri))
    (mlflow_experiment,) = (one for one in client.search_experiments() if one.name == "simclr")
    runs = client.search_runs([mlflow_experiment.experiment_id])
    (parent,) = (run for run in runs if run.data.tags["simclr.role"] == "parent")
    trials = {run.data.tags["simclr.trial_id"]: run for run in runs if run is not parent}
    assert parent.data.tags["simclr.kind"] == "sweep"
    assert parent.data.params["metric"] == "knn_accuracy"
    reports = [file.path for file in client.list_artifacts(parent.info.run_id, "report")]
    assert {"report/report.html", "report/report.json", "report/report.md"} <= set(reports)
    assert trials.keys() == {"t0000", "t0001"}
    for run in trials.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3]
    (version,) = client.search_model_versions("name = 'tau-exp_1'")
    assert version.run_id == trials["t0001"].info.run_id
    assert client.get_model_version_by_alias("tau-exp_1", "best").version == version.version


def test_an_encoder_that_mlflow_will_never_have_is_owed_by_nobody(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "storage"))
    job = document(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    adopted = {"state": "succeeded", "step": 3, "attempt": 1, "mlflow_run_id": None}  # of a sweep that it continues
    storage.write(job.trial_context("t0000").key("complete.json"), json.dumps(adopted).encode())
    with ParentRun(job, storage, RunDescription(name="tau", params={}, tags={}), drain_s=30) as parent_run:
        parent_run.begin()
        parent_run.products(artifacts={}, best_trial="t0000")
    assert unrecorded_runs(storage, "exp_1") == []
