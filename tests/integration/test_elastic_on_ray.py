"""A node joins and dies under a living run: it goes on with more workers and with fewer, on the same path.

And the driver is killed: the next attempt starts at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.harness.teams import trial_context
from tests.harness.trajectories import largest_difference, outcome, series
from trainer.context import JobDocument, TrialContext
from trainer.launch import run_trial_in_process
from trainer.spec import PretrainSpec
from tune_spaces.spec import SweepSpec, resolve

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(700)]

CPUS = 8  # of the stack's only node: one worker fills it, and another needs another node
DEADLINE_S = 150.0
# How long Ray keeps what a run had that was killed outright, as runs of other tests of this cluster are;
# an elastic run waits for it.
CLAIM_OF_THE_KILLED_S = 180.0
STEPS = 20
SPEC: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size": 16},
    "encoder": {"name": "resnet8"},
    "projection_head": {"dim": 16},
    "batch_size": 48,
    "epochs": 5,
    "precision": "float64",
    "optim": {"warmup_epochs": 1},
    "evaluation": {"linear_probe": False, "knn_every_epochs": 1},
}


def test_a_run_that_grows_and_shrinks_is_the_run_of_one_worker(
    ray_dashboard: str, tmp_path: Path, datasets_dir: Path
) -> None:
    context = trial_context(tmp_path / "elastic", datasets_dir, name=f"exp_{time.monotonic_ns()}")
    client = JobSubmissionClient(ray_dashboard)
    job = start(client, context)
    try:
        wait_until_it_runs(context, client, job)
        with second_node((tmp_path / "cache" / "gcs").read_text(), tmp_path / "node.log"):
            wait_until(lambda: 12 in series(context, "knn_accuracy"), client, job)  # the end of the third epoch
            assert list(series(context, "num_workers").values()) == [1.0, 2.0]
        wait_until(lambda: client.get_job_status(job).is_terminal(), client, job)
    finally:
        client.stop_job(job)
    assert client.get_job_status(job) is JobStatus.SUCCEEDED, client.get_job_logs(job)[-5000:]

    alone = trial_context(tmp_path / "alone", datasets_dir)
    run_trial_in_process(PretrainSpec.model_validate(SPEC), TrialContext.model_validate(alone))
    losses, tensors = outcome(context, steps=STEPS)
    losses_alone, tensors_alone = outcome(alone, steps=STEPS)
    assert max(abs(a - b) for a, b in zip(losses, losses_alone, strict=True)) <= 1e-9
    assert largest_difference(tensors, tensors_alone) <= 1e-9
    assert series(context, "knn_accuracy") == series(alone, "knn_accuracy")
    assert max(series(context, "parity_error").values()) <= 1e-10


def test_a_run_whose_driver_was_killed_does_not_wait_for_its_own_claim(
    ray_dashboard: str, tmp_path: Path, datasets_dir: Path
) -> None:
    context = trial_context(tmp_path / "elastic", datasets_dir, name=f"exp_{time.monotonic_ns()}")
    client = JobSubmissionClient(ray_dashboard)
    job = start(client, context)
    try:
        wait_until_it_runs(context, client, job)
        driver = client.get_job_info(job).driver_info
        assert driver is not None
        os.kill(int(driver.pid), signal.SIGKILL)
        wait_until(lambda: client.get_job_status(job) is JobStatus.FAILED, client, job)
        job = start(client, context, attempt=2)
        assert DEADLINE_S < CLAIM_OF_THE_KILLED_S
        wait_until(lambda: client.get_job_status(job) is JobStatus.SUCCEEDED, client, job)
    finally:
        client.stop_job(job)
    losses, _ = outcome(context, steps=STEPS)
    assert len(losses) == STEPS


def test_a_run_beside_a_sweep_takes_no_more_workers_than_there_is_room_for(
    ray_dashboard: str, tmp_path: Path, datasets_dir: Path
) -> None:
    client, name = JobSubmissionClient(ray_dashboard), f"exp_{time.monotonic_ns()}"
    sweep = trial_context(tmp_path / "sweep", datasets_dir, name=f"{name}-sweep")
    context = trial_context(tmp_path / "elastic", datasets_dir, name=name)
    jobs = [start_sweep(client, sweep, cpus=CPUS // 2)]
    try:
        wait_until(lambda: bool(series(sweep, "loss")), client, jobs[0])
        jobs.append(start(client, context, attempt=2, cpus=CPUS // 2))
        wait_until(
            lambda: client.get_job_status(jobs[1]) is JobStatus.SUCCEEDED,
            client,
            jobs[1],
            deadline_s=CLAIM_OF_THE_KILLED_S + DEADLINE_S,
        )
        assert not client.get_job_status(jobs[0]).is_terminal()
    finally:
        for job in jobs:
            client.stop_job(job)
    assert list(series(context, "num_workers").values()) == [1.0]


def start_sweep(client: JobSubmissionClient, context: dict[str, Any], *, cpus: int) -> str:
    """Start one trial that takes so many CPUs and does not end."""
    base = SPEC | {"epochs": 10_000, "scaling": {"cpus_per_worker": cpus}}
    sweep = SweepSpec.model_validate(
        {"base": base, "space": {"loss.temperature": {"choice": [0.5]}}, "max_concurrent_trials": 1}
    )
    document = document_of(context, "sweep", resolve(sweep), attempt=1)
    return submit(client, f"exec {sys.executable} -m tune_spaces --document {document.encode()}", document)


def wait_until_it_runs(context: dict[str, Any], client: JobSubmissionClient, job: str) -> None:
    """Wait for the end of the first epoch."""
    deadline_s = CLAIM_OF_THE_KILLED_S + DEADLINE_S
    wait_until(lambda: 4 in series(context, "knn_accuracy"), client, job, deadline_s=deadline_s)


def start(client: JobSubmissionClient, context: dict[str, Any], *, attempt: int = 1, cpus: int = CPUS) -> str:
    spec = SPEC | {"scaling": {"num_workers": {"min": 1, "max": 2}, "cpus_per_worker": cpus}}
    document = document_of(context, "pretrain", spec, attempt=attempt)
    return submit(client, f"exec {sys.executable} -m tests.harness.elastic_job {document.encode()}", document)


def document_of(
    context: dict[str, Any], kind: Literal["pretrain", "sweep"], spec: dict[str, Any], *, attempt: int
) -> JobDocument:
    return JobDocument(
        experiment_id=context["experiment_id"],
        name="elastic",
        kind=kind,
        attempt=attempt,
        spec=spec,
        storage=context["storage"],
        datasets_dir=context["datasets_dir"],
        cache_dir=context["cache_dir"],
    )


def submit(client: JobSubmissionClient, entrypoint: str, document: JobDocument) -> str:
    Path(document.cache_dir).mkdir(parents=True, exist_ok=True)
    environment = {
        "PYTHONPATH": str(Path.cwd()),
        "OMP_THREAD_LIMIT": "1",  # its CPUs are said, not there
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # for a node that died; 60 by default
        "RAY_JOB_STOP_SIGNAL": "SIGINT",  # what a run gives back on what it had
    }
    return str(
        client.submit_job(
            entrypoint=entrypoint,
            submission_id=f"{document.experiment_id}-{document.attempt}",
            runtime_env={"env_vars": environment},
        )
    )


@contextmanager
def second_node(gcs_address: str, log: Path) -> Iterator[None]:
    """Add a node to the cluster, and kill it outright."""
    command = [sys.executable, "-m", "tests.harness.second_node", gcs_address, str(CPUS)]
    environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else Ray leaves loopback
    with log.open("wb") as output:
        node = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield
        assert node.poll() is None, log.read_text()
    finally:
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with suppress(psutil.NoSuchProcess):  # some end with the one they belong to
                process.kill()
        node.wait(timeout=10)


def wait_until(
    is_so: Callable[[], bool], client: JobSubmissionClient, job: str, *, deadline_s: float = DEADLINE_S
) -> None:
    deadline = time.monotonic() + deadline_s
    while not is_so():
        is_over = client.get_job_status(job).is_terminal() and not is_so()
        assert not is_over, client.get_job_logs(job)[-5000:]
        assert time.monotonic() < deadline, client.get_job_logs(job)[-5000:]
        time.sleep(0.2)
