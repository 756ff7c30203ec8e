"""Sweeps on a real cluster: concurrency, early stops, workers, pause and resume, a killed driver, studies."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from mlflow import MlflowClient
from ray.job_submission import JobStatus, JobSubmissionClient

from trainer.context import JobDocument, ParentTrial, bundle_key, experiment_key
from trainer.storage import BlobMissing, DirectoryStorage
from trainer.trial_table import TrialRow, read_trial_table
from tune_spaces.spec import SweepSpec, resolve

pytestmark = pytest.mark.ray

DEADLINE_S = 180.0
MAX_IMAGES = 30 * 192  # epochs of `shapes`: more than a first trial and half a second of the next two
BASE: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size": 16},
    "encoder": {"name": "resnet8"},
    "batch_size": 32,
    "epochs": 2,
    "precision": "float32",
    "evaluation": {"knn_every_epochs": 1, "linear_probe": False},
}
TRIAL = "ImplicitFunc"  # what Tune calls the actor in which a trial runs
WORKER = "TrainWorker"  # and Ray Train those within it
TERMINAL = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}


class SweepJob:
    """One sweep whose attempts run as Ray jobs."""

    def __init__(
        self,
        client: JobSubmissionClient,
        places: dict[str, Any],
        tmp_path: Path,
        *,
        parent: SweepJob | None = None,
        **sweep: Any,
    ) -> None:
        self.client = client
        self.storage = DirectoryStorage(Path(places["storage"]))
        self.experiment_id = f"exp_{time.monotonic_ns()}"
        spec = resolve(SweepSpec.model_validate({"base": BASE, **sweep}))
        self.document = JobDocument(
            experiment_id=self.experiment_id,
            name="sweep",
            kind="sweep",
            attempt=1,
            spec=spec,
            cache_dir=str(tmp_path / "cache"),
            parent=ParentTrial(experiment_id=parent.experiment_id, trial_id="t0000") if parent else None,
            **places,
        )

    def start(self, attempt: int) -> str:
        word = self.document.model_copy(update={"attempt": attempt}).encode()
        return str(
            self.client.submit_job(
                entrypoint=f"exec {sys.executable} -m tune_spaces --document {word}",
                submission_id=f"{self.experiment_id}-{attempt}",
                runtime_env={"env_vars": {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "PYTHONPATH": str(Path.cwd())}},
            )
        )

    def finish(self, job: str) -> JobStatus:
        wait_until(lambda: self.client.get_job_status(job) in TERMINAL, self.log)
        return self.client.get_job_status(job)

    def rows(self) -> list[TrialRow]:
        return read_trial_table(self.storage, self.experiment_id)

    def states(self) -> list[str]:
        return [row.state for row in self.rows()]

    def markers(self) -> dict[str, bytes]:
        """Return the completion marker of each trial that has one."""
        keys = self.storage.list(experiment_key(self.experiment_id, "trials/"))
        return {key.split("/")[-2]: self.storage.read(key) for key in keys if key.endswith("/complete.json")}

    def read(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.storage.read(experiment_key(self.experiment_id, name)))
        return found

    def bundle(self, trial: str) -> bytes:
        """Return a finished trial's encoder."""
        marker = self.read(f"trials/{trial}/complete.json")
        return self.storage.read(bundle_key(self.experiment_id, trial, marker))

    def write(self, name: str, document: dict[str, Any]) -> None:
        self.storage.write(experiment_key(self.experiment_id, name), json.dumps(document).encode())

    def log(self) -> str:
        keys = self.storage.list(experiment_key(self.experiment_id, "attempts/"))
        logs = [self.storage.read(key).decode() for key in keys if key.endswith("driver.log")]
        return "\n".join(logs)


def wait_until(is_so: Callable[[], Any], explain: Callable[[], str], *, deadline_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.1)


@pytest.fixture
def start_sweep(
    ray_dashboard: str, mlflow_uri: str, storage_dir: Path, datasets_dir: Path, tmp_path: Path
) -> Iterator[Callable[..., SweepJob]]:
    client = JobSubmissionClient(ray_dashboard)
    places = {"storage": str(storage_dir), "mlflow_uri": mlflow_uri, "datasets_dir": str(datasets_dir)}
    started: list[SweepJob] = []

    def start(**sweep: Any) -> SweepJob:
        started.append(SweepJob(client, places, tmp_path, **sweep))
        return started[-1]

    yield start
    for sweep in started:
        for job in client.list_jobs():
            if (job.submission_id or "").startswith(sweep.experiment_id) and job.status not in TERMINAL:
                client.stop_job(str(job.submission_id))


def test_a_grid_runs_to_its_best_encoder_and_its_report(
    start_sweep: Callable[..., SweepJob], ray_dashboard: str
) -> None:
    sweep = start_sweep(
        base={**BASE, "scaling": {"cpus_per_worker": 3}},
        space={"loss.temperature": {"choice": [0.1, 0.5]}, "epochs": {"choice": [1, 2]}},
    )
    job = sweep.start(1)
    assert sweep.finish(job) is JobStatus.SUCCEEDED, sweep.log()
    assert "4 trials to run, 2 at a time" in sweep.log(), "the cluster has 8 CPUs, and a trial takes 3"
    classes = {actor["class_name"].rpartition(".")[2] for actor in actors(ray_dashboard, job)}  # qualified at times
    assert classes == {TRIAL}, "no cluster within the trial's"
    end = sweep.read("complete.json")
    rows = {row.id: row for row in sweep.rows()}
    assert set(sweep.states()) == {"succeeded"}
    assert end["state"] == "succeeded"
    assert end["best"]["value"] == max(row.metrics["knn_accuracy"] for row in rows.values())
    assert sweep.bundle(end["best"]["trial"])
    assert all(row.mlflow_run_id for row in rows.values())
    assert sweep.read("report.json")["best"]
    registry = MlflowClient(tracking_uri=sweep.document.mlflow_uri)
    best = registry.get_model_version_by_alias(f"sweep-{sweep.experiment_id}", "best")
    assert best.run_id == rows[end["best"]["trial"]].mlflow_run_id
    runs = {trial: registry.get_run(str(row.mlflow_run_id)).data for trial, row in rows.items()}
    assert {run.tags["mlflow.parentRunId"] for run in runs.values()} == {parent_run_id(registry, sweep)}
    for trial, row in rows.items():
        assert {path: json.loads(runs[trial].params[path]) for path in row.params} == row.params
    parent_id = parent_run_id(registry, sweep)
    # As MLflow's own pages of comparison ask: by flat params, among the children of one parent.
    condition = f"tags.mlflow.parentRunId = '{parent_id}' AND params.`loss.temperature` = '0.5'"
    experiment_ids = [registry.get_run(parent_id).info.experiment_id]
    found = registry.search_runs(experiment_ids, condition, order_by=["metrics.knn_accuracy DESC"])
    assert {run.data.tags["simclr.trial_id"] for run in found} == {
        trial for trial, row in rows.items() if row.params["loss.temperature"] == 0.5
    }
    artifacts = {file.path for file in registry.list_artifacts(parent_id, "report")}
    assert artifacts == {f"report/report.{form}" for form in ("html", "json", "md", "png")}


def test_median_stops_by_the_loss_that_each_epoch_came_to(start_sweep: Callable[..., SweepJob]) -> None:
    """A rate of next to nothing leaves the loss where it was, which three others have brought down."""
    sweep = start_sweep(
        base={**BASE, "epochs": 3, "evaluation": {"knn_every_epochs": 0, "linear_probe": False}},
        space={"optim.base_lr": {"choice": [0.3, 0.1, 0.2, 1e-7]}},
        scheduler="median",
        metric="loss",
        mode="min",
        max_concurrent_trials=1,
    )
    assert sweep.finish(sweep.start(1)) is JobStatus.SUCCEEDED, sweep.log()
    assert sweep.states() == ["succeeded"] * 3 + ["stopped_early"], sweep.log()
    best = sweep.read("complete.json")["best"]
    assert best["value"] == min(row.metrics["loss"] for row in sweep.rows()[:3])


def test_asha_stops_trials_early_and_they_end_cleanly(start_sweep: Callable[..., SweepJob]) -> None:
    sweep = start_sweep(
        base={**BASE, "epochs": 3},
        space={"optim.base_lr": {"choice": [0.3, 1e-7, 1e-8, 1e-9]}},
        scheduler="asha",
        metric="uniformity",  # what training drives down from the first step on
        mode="min",
        max_concurrent_trials=1,
    )
    assert sweep.finish(sweep.start(1)) is JobStatus.SUCCEEDED, sweep.log()
    assert "stopped_early" in sweep.states()
    assert "succeeded" in sweep.states()


def test_a_stopped_trial_of_two_workers_gives_back_what_it_held(
    start_sweep: Callable[..., SweepJob], ray_dashboard: str, record_testsuite_property: Callable[[str, object], None]
) -> None:
    good, bad, last = 0.3, 1e-7, 0.1
    sweep = start_sweep(
        base={**BASE, "scaling": {"num_workers": 2}},
        space={
            "optim.base_lr": {"choice": [good, bad, last]},
            # One alone in its cohort is not stopped, and outlives what it is to see the end of.
            "epochs": [{"choice": [3], "when": {"optim.base_lr": [good, bad]}}, {"choice": [2000]}],
            "scaling.num_workers": [{"choice": [2], "when": {"optim.base_lr": [good, bad]}}, {"choice": [1]}],
        },
        scheduler="asha",
        metric="uniformity",
        mode="min",
        max_concurrent_trials=1,
    )
    job = sweep.start(1)
    wait_until(lambda: sweep.states() and worker_groups(ray_dashboard, job), sweep.log)
    of_first = worker_groups(ray_dashboard, job)
    wait_until(lambda: worker_groups(ray_dashboard, job) - of_first, sweep.log)
    held = worker_groups(ray_dashboard, job)
    wait_until(lambda: sweep.states()[1] not in ("pending", "running"), sweep.log)
    assert sweep.states()[:2] == ["succeeded", "stopped_early"], sweep.log()
    stopped_s = time.monotonic()
    wait_until(lambda: not held & worker_groups(ray_dashboard, job), sweep.log)
    record_testsuite_property("freed_in_s", round(time.monotonic() - stopped_s, 2))
    assert sum(WORKER in actor["class_name"] for actor in actors(ray_dashboard, job)) >= 4, "two of each of the first"
    assert sweep.states()[2] in ("pending", "running"), "the end of the job would have freed all of it"
    sweep.write("stop.json", {"attempt": 1, "kind": "cancel"})
    sweep.finish(job)
    assert sweep.states() == ["succeeded", "stopped_early", "cancelled"]


@pytest.mark.parametrize("study", ["colour-shortcut", "h-vs-z"])
def test_a_study_runs_from_its_name_to_its_answer(start_sweep: Callable[..., SweepJob], study: str) -> None:
    sweep = start_sweep(base={"data": {"dataset": "shapes"}}, study=study, size="smoke", max_concurrent_trials=2)
    assert sweep.finish(sweep.start(1)) is JobStatus.SUCCEEDED, sweep.log()
    report = sweep.read("report.json")
    assert report["study"] == study
    assert report["num_trials"] == {"succeeded": len(sweep.rows())}
    assert report["num_seeds"] == 3
    assert all(claim["difference"] is not None for claim in report["claims"])
    assert report["verdict"] in ("holds", "does_not", "cannot_tell")
    assert (report["analysis"] is not None) == (study == "colour-shortcut")
    registry = MlflowClient(tracking_uri=sweep.document.mlflow_uri)
    artifacts = {file.path for file in registry.list_artifacts(parent_run_id(registry, sweep), "report")}
    assert "report/report.png" in artifacts
    assert ("report/report-histograms.png" in artifacts) == (study == "colour-shortcut")


def test_a_paused_sweep_resumes_runs_no_finished_trial_again_and_ends_at_its_limit(
    start_sweep: Callable[..., SweepJob],
) -> None:
    sweep = start_sweep(
        space={
            "loss.temperature": {"choice": [0.1, 0.2, 0.3, 0.5]},
            "epochs": [{"choice": [1000], "when": {"loss.temperature": [0.3]}}, {"choice": [2]}],
        },
        max_concurrent_trials=1,
        limits={"max_images": MAX_IMAGES},
    )
    job = sweep.start(1)
    wait_until(lambda: "succeeded" in sweep.states(), sweep.log)
    sweep.write("stop.json", {"attempt": 1, "kind": "pause"})
    sweep.finish(job)
    assert sweep.read("attempts/1/stopped.json")["kind"] == "pause"
    done = {row.id: row for row in sweep.rows() if row.state == "succeeded"}
    assert set(sweep.states()) == {"succeeded", "pending"}
    assert sweep.finish(sweep.start(2)) is JobStatus.SUCCEEDED, sweep.log()
    after = {row.id: row for row in sweep.rows()}
    assert all(after[trial] == row for trial, row in done.items())
    assert {row.attempt for row in sweep.rows()[:3]} == {1, 2}
    assert sweep.states() == ["succeeded", "succeeded", "stopped_early", "cancelled"], sweep.log()
    end = sweep.read("complete.json")
    assert end["state"] == "succeeded"
    assert end["best"]["trial"] in ("t0000", "t0001")
    assert [reason["code"] for reason in (end["reason"], sweep.rows()[3].reason or {})] == ["limit_reached"] * 2
    assert sum(sweep.read("spent.json")["images"].values()) >= MAX_IMAGES


def test_a_killed_driver_loses_no_trial(start_sweep: Callable[..., SweepJob]) -> None:
    sweep = start_sweep(space={"loss.temperature": {"choice": [0.1, 0.2, 0.3, 0.5]}}, max_concurrent_trials=2)
    job = sweep.start(1)
    wait_until(lambda: "succeeded" in sweep.states(), sweep.log)
    os.kill(driver_pid(sweep), signal.SIGKILL)
    assert sweep.finish(job) is JobStatus.FAILED
    with pytest.raises(BlobMissing):
        sweep.read("complete.json")
    done = sweep.markers()
    assert done
    assert sweep.finish(sweep.start(2)) is JobStatus.SUCCEEDED, sweep.log()
    assert sweep.states() == ["succeeded"] * 4
    assert [row.id for row in sweep.rows()] == ["t0000", "t0001", "t0002", "t0003"]
    assert done.items() <= sweep.markers().items(), "what had finished is not run again"
    assert all(row.attempt == 1 for row in sweep.rows() if row.id in done)


def test_a_continued_sweep_runs_the_further_trials_alone(start_sweep: Callable[..., SweepJob]) -> None:
    asked = {"space": {"loss.temperature": {"loguniform": [0.1, 1.0]}}, "search": "random", "max_concurrent_trials": 2}
    parent = start_sweep(**asked, num_samples=2)
    assert parent.finish(parent.start(1)) is JobStatus.SUCCEEDED, parent.log()
    longer = start_sweep(**asked, num_samples=4, parent=parent)
    assert longer.finish(longer.start(1)) is JobStatus.SUCCEEDED, longer.log()
    assert longer.states() == ["succeeded"] * 4
    assert longer.rows()[:2] == parent.rows(), "runs, values and params of before"
    assert "2 trials to run" in longer.log()
    runs = {row.mlflow_run_id for row in longer.rows()}
    assert len(runs) == 4
    assert longer.read("complete.json")["best"]["value"] == max(row.metrics["knn_accuracy"] for row in longer.rows())
    for trial in ("t0000", "t0001", "t0002", "t0003"):
        bundle = longer.bundle(trial)
        if trial in ("t0000", "t0001"):
            assert bundle == parent.bundle(trial)


def test_suggestions_are_run_one_after_the_other_and_kept(start_sweep: Callable[..., SweepJob]) -> None:
    sweep = start_sweep(
        space={"loss.temperature": {"loguniform": [0.1, 1.0]}, "batch_size": {"choice": [32, 64]}},
        search="optuna",
        num_samples=3,
        max_concurrent_trials=1,
    )
    assert sweep.finish(sweep.start(1)) is JobStatus.SUCCEEDED, sweep.log()
    assert sweep.states() == ["succeeded"] * 3
    assert all(0.1 <= row.params["loss.temperature"] <= 1.0 for row in sweep.rows())
    assert len({row.params["loss.temperature"] for row in sweep.rows()}) == 3
    assert sweep.read("complete.json")["best"]["value"] == max(row.metrics["knn_accuracy"] for row in sweep.rows())


def test_a_trial_whose_process_dies_again_and_again_fails_with_a_reason(start_sweep: Callable[..., SweepJob]) -> None:
    sweep = start_sweep(base={**BASE, "epochs": 10_000}, space={"loss.temperature": {"choice": [0.1]}})
    job = sweep.start(1)
    killed: set[int] = set()

    def trains() -> set[int]:
        """Return the processes that have come to an epoch, as the log has them, and live."""
        told = {int(pid) for pid in re.findall(r"\(_run_one pid=(\d+)\)", sweep.log())}
        return {pid for pid in told - killed if psutil.pid_exists(pid)}

    while len(killed) < 2:  # once it is started anew
        wait_until(trains, sweep.log)
        for pid in trains():
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    sweep.finish(job)
    assert sweep.states() == ["failed"]
    reason = sweep.read("complete.json")["reason"]
    assert (reason["code"], reason["cause"]["code"]) == ("all_trials_failed", "trial_crashed")
    assert reason["cause"]["message"] in reason["message"]


def test_all_trials_failing_is_a_failure_with_its_cause(start_sweep: Callable[..., SweepJob]) -> None:
    sweep = start_sweep(
        base={**BASE, "optim": {"kind": "sgd", "base_lr": 1000.0, "lr_scaling": "none", "warmup_epochs": 0.0}},
        space={"loss.temperature": {"choice": [0.001]}, "loss.normalize": {"choice": [False]}},
    )
    sweep.finish(sweep.start(1))
    end = sweep.read("complete.json")
    assert end["state"] == "failed"
    assert end["reason"]["code"] == "all_trials_failed"
    assert end["reason"]["cause"]["code"] == "non_finite_loss"


def driver_pid(sweep: SweepJob) -> int:
    """Return the process that the driver's own log names."""
    line = next(line for line in sweep.log().splitlines() if "(process " in line)
    return int(line.rpartition("(process ")[2].rstrip(")"))


def parent_run_id(registry: MlflowClient, sweep: SweepJob) -> str:
    experiment = registry.get_experiment_by_name("simclr")
    assert experiment is not None
    condition = f"tags.`simclr.experiment_id` = '{sweep.experiment_id}' AND tags.`simclr.role` = 'parent'"
    (parent,) = registry.search_runs([experiment.experiment_id], condition)
    return str(parent.info.run_id)


def actors(ray_dashboard: str, job: str) -> list[dict[str, Any]]:
    """Return all actors that a job has ever had."""
    answer = httpx2.get(f"{ray_dashboard}/api/v0/actors", params={"detail": True, "limit": 1000}, timeout=60).json()
    ray_job_id = id_of(ray_dashboard, job)
    return [actor for actor in answer["data"]["result"]["result"] if actor["job_id"] == ray_job_id]


def id_of(ray_dashboard: str, job: str) -> str:
    """Return Ray's own id of a job."""
    (ray_job_id,) = {one.job_id for one in JobSubmissionClient(ray_dashboard).list_jobs() if one.submission_id == job}
    return str(ray_job_id)


def worker_groups(ray_dashboard: str, job: str) -> set[str]:
    """Return the placement groups of a job that reserve whole CPUs for workers now."""
    answer = httpx2.get(
        f"{ray_dashboard}/api/v0/placement_groups", params={"detail": True, "limit": 1000}, timeout=60
    ).json()
    ray_job_id = id_of(ray_dashboard, job)
    return {
        group["placement_group_id"]
        for group in answer["data"]["result"]["result"]
        if group["state"] != "REMOVED" and group["creator_job_id"] == ray_job_id and len(group["bundles"]) == 2
    }
