"""Experiments against a running service: short specs, waiting, and what must be true of every end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from service.client import Client, Experiment

END_TIMEOUT_S: Final = 240.0

# `shapes` has 216 images to pretrain on: 4 steps an epoch.
SHORT: Final[dict[str, Any]] = {
    "data": {"dataset": "shapes", "image_size": 16},
    "encoder": {"name": "resnet8"},
    "projection_head": {"dim": 16},
    "batch_size": 48,
    "epochs": 5,
    "optim": {"warmup_epochs": 1},
    "evaluation": {"knn_every_epochs": 0, "linear_probe": False},
}
STEPS_PER_EPOCH: Final = 4
LONG: Final[dict[str, Any]] = SHORT | {"epochs": 60}  # long enough to be killed in the middle


def submit(client: Client, name: str, spec: dict[str, Any], *, kind: str = "pretrain") -> Experiment:
    return client.submit({"name": name, "kind": kind, "spec": spec})


def wait_until(condition: Callable[[], Any], *, timeout_s: float = END_TIMEOUT_S, what: str = "it") -> Any:
    """Return the first true value of `condition`, asked again and again until a deadline."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come about in {timeout_s:.0f} s")
        time.sleep(0.2)
    return value


def num_steps(client: Client, experiment_id: str) -> int:
    return len(losses(client, experiment_id))


def losses(client: Client, experiment_id: str) -> list[float]:
    """Return the loss of each step; fails where a step is missing, repeated or out of order."""
    points = client.metrics(experiment_id, keys=["loss"])["series"].get("loss", [])
    assert [point["step"] for point in points] == list(range(1, len(points) + 1))
    return [float(point["value"]) for point in points if point["value"] is not None]


def recorded_steps(mlflow_uri: str, experiment_id: str, *, key: str = "loss") -> list[int]:
    """Return the steps of a pretraining's metric as MLflow has them; the service shows one of two alike."""
    from mlflow import MlflowClient

    mlflow = MlflowClient(mlflow_uri)
    kept = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    ours = f"tags.`simclr.experiment_id` = '{experiment_id}' AND tags.`simclr.role` = 'trial'"
    (run,) = mlflow.search_runs(kept, filter_string=ours)
    return sorted(point.step for point in mlflow.get_metric_history(run.info.run_id, key))


def finish(client: Client, experiment_id: str, *, epochs: int) -> Experiment:
    """Wait for success and check that every step was recorded once."""
    ended = client.wait(experiment_id, timeout_s=END_TIMEOUT_S)
    assert ended["state"] == "succeeded", ended["reason"]
    assert num_steps(client, experiment_id) == epochs * STEPS_PER_EPOCH
    return ended
