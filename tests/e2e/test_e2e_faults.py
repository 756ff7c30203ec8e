"""Kill a part while an experiment runs: it goes on or comes back, and every step is recorded once.

One experiment runs at a time here, so that what is killed is certainly part of it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import psutil
import pytest

from service.client import Client, ClientError, Experiment
from tests.conftest import RunningStack
from tests.harness.experiments import LONG, finish, num_steps, submit, wait_until

pytestmark = pytest.mark.ray

EPOCHS = LONG["epochs"]


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


def test_the_service_is_killed(stack: RunningStack, client: Client, running: Experiment) -> None:
    (service,) = processes(stack, "-m service")
    service.send_signal(signal.SIGKILL)
    ended = finish(client, running["id"], epochs=EPOCHS)
    assert ended["attempt"] == 1


def test_a_worker_is_killed(stack: RunningStack, client: Client, running: Experiment) -> None:
    workers = processes(stack, "ray::RayTrainWorker") or processes(stack, "RayTrainWorker")
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    ended = finish(client, running["id"], epochs=EPOCHS)
    assert ended["attempt"] == 1  # Ray Train started the group again within the job


def test_the_driver_is_killed(stack: RunningStack, client: Client, running: Experiment) -> None:
    drivers = processes(stack, "-m trainer", "--document")
    for driver in drivers:
        driver.send_signal(signal.SIGKILL)
    ended = finish(client, running["id"], epochs=EPOCHS)
    assert ended["attempt"] == 2
    states = [event.data["state"] for event in client.watch(running["id"]) if event.type == "state"]
    assert states == ["queued", "starting", "running", "recovering", "running", "succeeded"]


def test_mlflow_is_frozen_for_a_while(stack: RunningStack, client: Client, running: Experiment) -> None:
    frozen = processes(stack, "mlflow", "server")
    assert frozen
    with stopped(frozen):
        wait_until(lambda: is_refused_for_now(client, running["id"]), what="the refusal", timeout_s=30)
        assert client.experiment(running["id"])["state"] == "running"
    finish(client, running["id"], epochs=EPOCHS)


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


def test_it_is_paused_and_resumed(client: Client, running: Experiment) -> None:
    client.pause(running["id"])
    wait_until(lambda: client.experiment(running["id"])["state"] == "paused", what="the pause", timeout_s=60)
    before = num_steps(client, running["id"])
    assert 0 < before < EPOCHS * 4
    client.resume(running["id"])
    ended = finish(client, running["id"], epochs=EPOCHS)
    assert ended["attempt"] == 2


def test_it_is_cancelled(stack: RunningStack, client: Client, running: Experiment) -> None:
    client.cancel(running["id"])
    ended = client.wait(running["id"], timeout_s=60)
    assert ended["state"] == "cancelled"
    wait_until(lambda: not processes(stack, "-m trainer", "--document"), what="the end of the job", timeout_s=30)
    (trial,) = client.trials(running["id"])
    assert trial["state"] == "cancelled"


def test_the_head_of_ray_is_killed(stack: RunningStack, client: Client, running: Experiment) -> None:
    for process in processes(stack, "gcs_server"):
        process.send_signal(signal.SIGKILL)
    ended = finish(client, running["id"], epochs=EPOCHS)
    assert ended["attempt"] >= 2


@pytest.fixture(autouse=True)
def _nothing_is_left_frozen(stack: RunningStack) -> Iterator[None]:
    yield
    for process in processes(stack, "mlflow"):
        if process.status() == psutil.STATUS_STOPPED:
            process.resume()
