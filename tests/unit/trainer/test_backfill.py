"""What MLflow missed of an ended trial is sent when it is back: all of it, in order, once."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from trainer.backfill import backfill
from trainer.context import JobDocument, TrialContext, trial_key
from trainer.fence import take_fence
from trainer.mlflow_runs import MlflowRuns, RunDescription
from trainer.outbox import Outbox, Point
from trainer.scribe import Scribe
from trainer.storage import open_storage
from trainer.unrecorded import unrecorded_runs

pytestmark = pytest.mark.slow  # MLflow makes its database

STEPS = 30


@pytest.fixture(scope="module")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where two tests share a database of MLflow's, which takes seconds to make."""
    return tmp_path_factory.mktemp("mlflow")


def document(folder: Path, mlflow_uri: str | None, experiment_id: str = "exp_1") -> JobDocument:
    return JobDocument(
        experiment_id=experiment_id,
        name="n",
        kind="pretrain",
        attempt=1,
        spec={"epochs": 3},
        storage=str(folder / "storage"),
        mlflow_uri=mlflow_uri,
        cache_dir="c",
    )


def begin(job: JobDocument) -> Scribe:
    scribe = Scribe(job.trial_context("t0000", is_only_trial=True))
    scribe.begin(RunDescription(name="n/t0000", params={"epochs": "3"}, tags={"simclr.seed": "5"}))
    for step in range(1, STEPS + 1):
        scribe.metrics(step, {"loss": 1.0 / step})
    return scribe


def end_without_mlflow(job: JobDocument) -> None:
    scribe = begin(job)
    scribe.artifact("encoder/encoder.json", b"{}")
    scribe.complete({"state": "succeeded", "step": STEPS}, drain_s=0.1)


def test_an_ended_trial_is_recorded_when_mlflow_is_back(
    tmp_path: Path, mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        away = document(tmp_path, f"http://127.0.0.1:{black_hole.getsockname()[1]}")
        end_without_mlflow(away)
        storage = open_storage(away.storage)
        assert backfill(away, drain_s=0.1) == ["t0000"]  # it is away still: nothing is lost by trying
    monkeypatch.chdir(mlflow_folder)  # where MLflow keeps artifacts beside a database of its own
    back = document(tmp_path, f"sqlite:///{mlflow_folder}/mlflow.db")
    assert backfill(back) == []
    assert unrecorded_runs(storage, "exp_1") == []
    assert backfill(back) == []

    client = MlflowClient(str(back.mlflow_uri))
    runs = runs_of(client, "exp_1")
    assert runs.keys() == {"parent", "trial"}
    trial = runs["trial"]
    points = client.get_metric_history(trial.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(step, 1.0 / step) for step in range(1, STEPS + 1)]
    assert trial.data.params == {"epochs": "3"}
    assert trial.data.tags["simclr.seed"] == "5"
    assert trial.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(trial.info.run_id, "encoder")] == ["encoder/encoder.json"]


def runs_of(client: MlflowClient, experiment_id: str) -> dict[str, Run]:
    (mlflow_experiment,) = (one for one in client.search_experiments() if one.name == "simclr")
    ours = f"tags.`simclr.experiment_id` = '{experiment_id}'"
    found = client.search_runs([mlflow_experiment.experiment_id], filter_string=ours)
    return {run.data.tags["simclr.role"]: run for run in found}


def test_the_last_numbers_of_a_failed_trial_are_sent_too_and_its_end_is_left_to_the_service(
    tmp_path: Path, mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("trainer.scribe.CLOSE_DRAIN_S", 0.1)
    scribe = begin(document(tmp_path, "http://127.0.0.1:9", "exp_2"))
    scribe.metrics(STEPS + 1, {"loss": float("nan")})
    scribe.close()
    monkeypatch.chdir(mlflow_folder)
    back = document(tmp_path, f"sqlite:///{mlflow_folder}/mlflow.db", "exp_2")
    assert unrecorded_runs(open_storage(back.storage), "exp_2") == ["t0000"]
    assert backfill(back) == []

    client = MlflowClient(str(back.mlflow_uri))
    trial = runs_of(client, "exp_2")["trial"]
    history = client.get_metric_history(trial.info.run_id, "loss")
    assert [point.step for point in history] == list(range(1, STEPS + 2))
    assert math.isnan(history[-1].value)
    assert trial.info.status == "RUNNING"


def leave_a_long_log(job: JobDocument) -> TrialContext:
    context = job.trial_context("t0001", is_only_trial=True)
    storage = open_storage(job.storage)
    outbox = Outbox(storage, context.key("metrics/"), take_fence(storage, context))
    for number in range(150):
        steps = range(10 * number + 1, 10 * number + 11)
        outbox.append_points([Point("loss", step, 1.0 / step, 1000 + step) for step in steps])
    description = {"name": "n/t0001", "params": {}, "tags": {}}
    storage.write(context.key("metrics/description.json"), json.dumps(description).encode())
    for trial_id in ("t0000", "t0001"):  # the first has no more than its marker
        storage.write(trial_key("exp_1", trial_id, "complete.json"), b'{"is_recorded": false}')
    return context


def test_a_long_log_goes_in_few_calls_and_each_point_once_past_a_trial_that_left_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = document(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    leave_a_long_log(job)
    monkeypatch.chdir(tmp_path)
    runs = MlflowRuns(str(job.mlflow_uri), open_storage(job.storage), "exp_1")
    only = RunDescription(name="n", params={}, tags={})
    run_id = runs.ensure_trial("t0001", runs.ensure_parent(only), only)
    # a start that died between the call and the mark sent some of these, in another grouping
    runs.log_points(run_id, tuple(Point("loss", step, 1.0 / step, 1000 + step) for step in range(1, 26)))
    calls: list[int] = []
    log_batch, join = MlflowClient.log_batch, threading.Thread.join
    has_first, has_waited = threading.Event(), threading.Event()

    def counted(client: MlflowClient, run_id: str, metrics: Sequence[Metric] = (), **rest: Any) -> Any:
        calls.append(len(metrics))
        if len(calls) > 1:
            has_first.set()
            has_waited.wait(30)
        return log_batch(client, run_id, metrics=metrics, **rest)

    def lasting(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name != "mlflow-sender" or has_waited.is_set():
            return join(thread, timeout)
        has_first.wait(30)  # the time to wait is over when the first call is done and the second is not
        return has_waited.set()

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    monkeypatch.setattr(threading.Thread, "join", lasting)
    assert backfill(job) == ["t0000"]
    assert [num_points for num_points in calls if num_points] == [1000, 500]
    history = runs.client.get_metric_history(run_id, "loss")
    assert [point.step for point in history] == list(range(1, 1501))


def test_without_an_mlflow_there_is_nothing_to_send_to(tmp_path: Path) -> None:
    end_without_mlflow(document(tmp_path, None))
    assert unrecorded_runs(open_storage(str(tmp_path / "storage")), "exp_1") == []
    with pytest.raises(ValueError, match="names no MLflow"):
        backfill(document(tmp_path, None))
