"""What MLflow missed of an ended trial is sent when it is back: all of it, in order, once."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient

from trainer.backfill import backfill
from trainer.context import JobDocument
from trainer.scribe import Scribe
from trainer.storage import open_storage
from trainer.tracking import RunDescription
from trainer.unrecorded import unrecorded_trials

pytestmark = pytest.mark.slow  # MLflow makes its database

STEPS = 30


def document(folder: Path, mlflow_uri: str | None) -> JobDocument:
    return JobDocument(
        experiment_id="exp_1",
        name="n",
        kind="pretrain",
        attempt=1,
        spec={"epochs": 3},
        storage=str(folder / "storage"),
        mlflow_uri=mlflow_uri,
        cache_dir="c",
    )


def end_without_mlflow(job: JobDocument) -> None:
    scribe = Scribe(job.trial_context("t0000", is_only_trial=True))
    scribe.begin(RunDescription(name="n/t0000", params={"epochs": "3"}, tags={"simclr.seed": "5"}))
    for step in range(1, STEPS + 1):
        scribe.metrics(step, {"loss": 1.0 / step})
    scribe.artifact("encoder/encoder.json", b"{}")
    scribe.complete({"state": "succeeded", "step": STEPS}, drain_s=0.1)


def test_an_ended_trial_is_recorded_when_mlflow_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        away = document(tmp_path, f"http://127.0.0.1:{black_hole.getsockname()[1]}")
        end_without_mlflow(away)
        storage = open_storage(away.storage)
        assert backfill(away, drain_s=0.1) == ["t0000"]  # it is away still: nothing is lost by trying
    monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts beside a database of its own
    back = document(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    assert backfill(back) == []
    assert unrecorded_trials(storage, "exp_1") == []
    assert backfill(back) == []

    client = MlflowClient(str(back.mlflow_uri))
    (mlflow_experiment,) = (one for one in client.search_experiments() if one.name == "simclr")
    runs = {run.data.tags["simclr.role"]: run for run in client.search_runs([mlflow_experiment.experiment_id])}
    assert runs.keys() == {"parent", "trial"}
    trial = runs["trial"]
    points = client.get_metric_history(trial.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(step, 1.0 / step) for step in range(1, STEPS + 1)]
    assert trial.data.params == {"epochs": "3"}
    assert trial.data.tags["simclr.seed"] == "5"
    assert trial.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(trial.info.run_id, "encoder")] == ["encoder/encoder.json"]


def test_without_an_mlflow_there_is_nothing_to_send_to(tmp_path: Path) -> None:
    end_without_mlflow(document(tmp_path, None))
    assert unrecorded_trials(open_storage(str(tmp_path / "storage")), "exp_1") == []
    with pytest.raises(ValueError, match="names no MLflow"):
        backfill(document(tmp_path, None))
