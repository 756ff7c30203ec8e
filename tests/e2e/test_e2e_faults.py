"""Kill a part while an experiment runs: it goes on or comes back, and every step is recorded once.

One experiment runs at a time here, so that what is killed is certainly part of it.
"""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from service.client import Client, ClientError, Experiment
from service.experiment import submission_id
from tests.conftest import RunningStack
from tests.harness.experiments import (
    LONG,
    SHORT,
    STEPS_PER_EPOCH,
    finish,
    num_steps,
    recorded_steps,
    submit,
    wait_until,
)
from tests.harness.moments import catch, ray_jobs
from tests.harness.sightings import StreamSightings, recorded_at, sightings
from trainer.context import trial_key
from trainer.storage import open_storage

pytestmark = pytest.mark.ray

EPOCHS = LONG["epochs"]
WATCHED_S = 12.0
SEEN_WITHIN_S = 20.0  # 5 on a machine that has nothing else to do; how long it took is noted
SUBMISSION = {"name": "refused for now", "kind": "pretrain", "spec": SHORT}


@pytest.fixture
def client(stack: RunningStack) -> Iterator[Client]:
    with Client(stack.url, retry_for_s=60) as client:
        yield client


@pytest.fixture
def running(client: Client, request: pytest.FixtureRequest) -> Experiment:
    """Return an experiment on two workers that has made some steps."""
    experiment = submit(client, request.node.name[:100], LONG | {"scaling": {"num_workers": 2}})
    wait_until(lambda: num_steps(client, experiment["id"]) >= 5, what="the first steps")
    return experiment


def processes(stack: RunningStack, *words: str) -> list[psutil.Process]:
    """Return the stack's processes whose command line has all these words."""
    found = []
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if all(word in line for word in words):
            found.append(process)
    return found


def finish_exactly(stack: RunningStack, client: Client, experiment_id: str, *, epochs: int) -> Experiment:
    """Wait for success and check that MLflow has every step, and none twice."""
    ended = finish(client, experiment_id, epochs=epochs)
    assert recorded_steps(stack.mlflow_uri, experiment_id) == list(range(1, epochs * STEPS_PER_EPOCH + 1))
    return ended


def test_the_service_is_killed_at_three_moments_at_once(
    stack: RunningStack, client: Client, running: Experiment
) -> None:
    (service,) = processes(stack, "-m service")
    moments = catch(
        service,
        submit=lambda name: str(submit(client, name, SHORT)["id"]),
        ray_url=stack.ray_dashboard,
        database_url=f"sqlite:///{stack.home}/simclr.db",
    )
    service.send_signal(signal.SIGKILL)
    epochs = {running["id"]: EPOCHS} | {one: SHORT["epochs"] for ids in moments.values() for one in ids}
    for experiment_id, number in epochs.items():
        ended = finish_exactly(stack, client, experiment_id, epochs=number)
        assert ended["attempt"] == 1
        assert ray_jobs(stack.ray_dashboard, experiment_id) == [submission_id(experiment_id, 1)]
        fences = open_storage(stack.storage).list(trial_key(experiment_id, "t0000", "fence/"))
        assert len(fences) == 1, "it was started twice"


def test_a_worker_is_killed(stack: RunningStack, client: Client, running: Experiment) -> None:
    workers = processes(stack, "ray::RayTrainWorker") or processes(stack, "RayTrainWorker")
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    ended = finish_exactly(stack, client, running["id"], epochs=EPOCHS)
    assert ended["attempt"] == 1  # Ray Train started the group again within the job


def test_the_driver_is_killed(stack: RunningStack, client: Client, running: Experiment) -> None:
    drivers = processes(stack, "-m trainer", "--document")
    for driver in drivers:
        driver.send_signal(signal.SIGKILL)
    ended = finish_exactly(stack, client, running["id"], epochs=EPOCHS)
    assert ended["attempt"] == 2
    states = [event.data["state"] for event in client.watch(running["id"]) if event.type == "state"]
    assert states == ["queued", "starting", "running", "recovering", "running", "succeeded"]


def test_mlflow_is_frozen_and_then_the_database_locked_for_a_while(
    stack: RunningStack, client: Client, running: Experiment
) -> None:
    frozen = processes(stack, "mlflow", "server")
    assert frozen
    with stopped(frozen):
        wait_until(lambda: is_refused_for_now(client, running["id"]), what="the refusal", timeout_s=30)
        assert client.experiment(running["id"])["state"] == "running"
    with locked(stack.home / "simclr.db"):
        refusal = httpx2.post(f"{stack.url}/experiments", json=SUBMISSION, timeout=60)
        assert (refusal.status_code, "retry-after" in refusal.headers) == (503, True)
        assert httpx2.get(f"{stack.url}/livez").is_success
    finish_exactly(stack, client, running["id"], epochs=EPOCHS)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold SQLite's only right to write."""
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.rollback()


def is_refused_for_now(client: Client, experiment_id: str) -> bool:
    with Client(client.url, retry_for_s=0) as impatient:
        try:
            impatient.metrics(experiment_id, keys=["loss"])
        except ClientError as error:
            return error.status == 503
    return False


class stopped:  # noqa: N801 - reads as a word of the sentence
    """Freeze processes while entered."""

    def __init__(self, frozen: list[psutil.Process]) -> None:
        self._frozen = frozen

    def __enter__(self) -> None:
        for process in self._frozen:
            process.suspend()

    def __exit__(self, *_: object) -> None:
        for process in self._frozen:
            process.resume()


def test_it_is_paused_and_resumed(stack: RunningStack, client: Client, running: Experiment) -> None:
    client.pause(running["id"])
    wait_until(lambda: client.experiment(running["id"])["state"] == "paused", what="the pause", timeout_s=60)
    before = num_steps(client, running["id"])
    assert 0 < before < EPOCHS * 4
    client.resume(running["id"])
    ended = finish_exactly(stack, client, running["id"], epochs=EPOCHS)
    assert ended["attempt"] == 2


def test_its_points_are_seen_while_it_trains_and_it_is_cancelled(
    stack: RunningStack, client: Client, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """Left alone until its cancellation, it is also the run on which the time to the reader is measured."""
    endless = SHORT | {"epochs": 1000, "scaling": {"num_workers": 2}}
    running = submit(client, "seen and cancelled", endless)
    stream = StreamSightings(stack.url, running["id"])
    seen = {"metrics": sightings(client, running["id"], for_s=WATCHED_S)}

    client.cancel(running["id"])
    ended = client.wait(running["id"], timeout_s=60)
    assert ended["state"] == "cancelled"
    wait_until(lambda: not processes(stack, "-m trainer", "--document"), what="the end of the job", timeout_s=30)
    (trial,) = client.trials(running["id"])
    assert trial["state"] == "cancelled"

    seen["events"] = stream.seen()
    recorded = recorded_at(client, running["id"])
    for where, times in seen.items():
        late_s = {step: (at - recorded[step]).total_seconds() for step, at in times.items()}
        assert len({*times.values()}) > WATCHED_S / 5, f"{where}: {late_s}"
        assert max(late_s.values()) < SEEN_WITHIN_S, f"{where}: {late_s}"
        record_testsuite_property(f"seen_in_{where}_s", round(max(late_s.values()), 2))


def test_the_head_of_ray_is_killed(stack: RunningStack, client: Client, running: Experiment) -> None:
    for process in processes(stack, "gcs_server"):
        process.send_signal(signal.SIGKILL)
    ended = finish_exactly(stack, client, running["id"], epochs=EPOCHS)
    assert ended["attempt"] >= 2


@pytest.fixture(autouse=True)
def _nothing_is_left_frozen(stack: RunningStack) -> Iterator[None]:
    yield
    for process in processes(stack, "mlflow"):
        with suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                process.resume()
