"""Sweeps and studies as their users have them: one POST, what it costs, how it goes, and the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mlflow import MlflowClient

from service.client import Client, ClientError, Experiment
from tests.conftest import RunningStack
from tests.harness.experiments import END_TIMEOUT_S, SHORT, STEPS_PER_EPOCH, losses, submit, wait_until

pytestmark = pytest.mark.ray

BASE: dict[str, Any] = SHORT | {"epochs": 2, "precision": "float32", "optim": {"warmup_epochs": 0}}
RANDOM: dict[str, Any] = {
    "base": BASE,
    "space": {"loss.temperature": {"loguniform": [0.1, 1.0]}},
    "search": "random",
    "num_samples": 2,
}


@pytest.fixture(scope="module")
def client(stack: RunningStack) -> Iterator[Client]:
    with Client(stack.url) as client:
        yield client


@pytest.fixture(scope="module")
def sweep(client: Client) -> Experiment:
    """Run a random sweep of two points."""
    return ended(client, submit(client, "twopoints", RANDOM, kind="sweep"))


def ended(client: Client, experiment: Experiment, *, state: str = "succeeded") -> Experiment:
    found = client.wait(experiment["id"], timeout_s=END_TIMEOUT_S)
    assert found["state"] == state, found["reason"]
    return found


def test_what_it_costs_is_known_before_it_runs(client: Client) -> None:
    plan = client.validate({"name": "s", "kind": "sweep", "spec": RANDOM})["plan"]
    assert (plan["trials"], plan["steps"]) == (2, 2 * 2 * STEPS_PER_EPOCH)
    assert plan["images"] == plan["steps"] * BASE["batch_size"]
    assert plan["trials_at_once"] == 2
    assert plan["memory_bytes"] > 0


def test_a_sweep_is_read_trial_by_trial_and_as_a_whole(stack: RunningStack, client: Client, sweep: Experiment) -> None:
    trials = list(client.trials(sweep["id"]))
    assert [(trial["id"], trial["state"]) for trial in trials] == [("t0000", "succeeded"), ("t0001", "succeeded")]
    accuracies = {trial["id"]: trial["metrics"]["knn_accuracy"] for trial in trials}
    assert sweep["best"] is not None
    assert sweep["best"]["value"] == max(value for value in accuracies.values() if value is not None)
    assert accuracies[sweep["best"]["trial"]] == sweep["best"]["value"]
    for trial in trials:
        points = client.metrics(sweep["id"], keys=["loss"], trial=trial["id"])["series"]["loss"]
        assert [point["step"] for point in points] == list(range(1, 2 * STEPS_PER_EPOCH + 1))
    registered = MlflowClient(stack.mlflow_uri).get_model_version_by_alias(f"twopoints-{sweep['id']}", "best")
    best = next(trial for trial in trials if trial["id"] == sweep["best"]["trial"])
    assert registered.run_id == best["mlflow_run_id"]
    report = client.report(sweep["id"])
    assert report["num_trials"] == {"succeeded": 2}
    for path, start in (("report?format=html", b"<!doctype"), ("report?format=md", b"# "), ("report.png", b"\x89PNG")):
        assert httpx2.get(f"{stack.url}/experiments/{sweep['id']}/{path}").content.startswith(start)


def test_its_log_is_for_reading(client: Client, sweep: Experiment) -> None:
    log = "\n".join(client.logs(sweep["id"])["lines"])
    assert "2 trials to run" in log
    assert "epoch 2 of 2" in log
    assert [line for line in log.splitlines() if "\x1b" in line] == [], "no colours of a terminal"
    assert "Failed to fetch" not in log, "nothing that Tune misses and nobody wrote"


def test_a_trial_computes_what_the_pretraining_of_its_spec_does(client: Client, sweep: Experiment) -> None:
    (first, _) = client.trials(sweep["id"])
    spec = BASE | {"loss": {"temperature": first["params"]["loss.temperature"]}}
    alone = ended(client, submit(client, "alone", spec))
    points = client.metrics(sweep["id"], keys=["loss"], trial=first["id"])["series"]["loss"]
    assert [point["value"] for point in points] == losses(client, alone["id"])
    (trial,) = client.trials(alone["id"])
    assert trial["metrics"]["knn_accuracy"] == first["metrics"]["knn_accuracy"]


def test_a_continued_sweep_has_the_trials_it_had_and_more(client: Client, sweep: Experiment) -> None:
    longer = ended(client, client.continue_experiment(sweep["id"], max_trials=3))
    before, after = list(client.trials(sweep["id"])), list(client.trials(longer["id"]))
    assert [trial["mlflow_run_id"] for trial in after[:2]] == [trial["mlflow_run_id"] for trial in before]
    assert [trial["state"] for trial in after] == ["succeeded"] * 3
    assert longer["parent"] is not None
    assert longer["parent"]["experiment_id"] == sweep["id"]


def test_a_sweep_is_paused_resumed_and_cancelled(client: Client) -> None:
    space = {"epochs": {"choice": [1, 2000, 2001]}}
    asked = {"base": BASE, "space": space, "max_concurrent_trials": 1}
    experiment_id = submit(client, "verbs", asked, kind="sweep")["id"]
    wait_until(lambda: states(client, experiment_id)[:2] == ["succeeded", "running"], what="the second trial")
    (done, *_) = client.trials(experiment_id)
    client.pause(experiment_id)
    wait_until(lambda: client.experiment(experiment_id)["state"] == "paused", what="the pause")
    assert states(client, experiment_id) == ["succeeded", "pending", "pending"]
    client.resume(experiment_id)
    wait_until(lambda: states(client, experiment_id)[1] == "running", what="the second trial")
    client.cancel(experiment_id)
    assert client.wait(experiment_id, timeout_s=END_TIMEOUT_S)["state"] == "cancelled"
    assert states(client, experiment_id) == ["succeeded", "cancelled", "cancelled"]
    assert next(iter(client.trials(experiment_id))) == done, "it was not run again"


def test_a_sweep_of_which_every_trial_fails_says_why(client: Client, tmp_path: Path) -> None:
    base = BASE | {"optim": {"kind": "sgd", "base_lr": 1000.0, "lr_scaling": "none", "warmup_epochs": 0.0}}
    space = {"loss.temperature": {"choice": [0.001, 0.002]}, "loss.normalize": {"choice": [False]}}
    failed = ended(client, submit(client, "nan", {"base": base, "space": space}, kind="sweep"), state="failed")
    assert failed["reason"] is not None
    assert failed["reason"]["code"] == "all_trials_failed"
    assert "all 2 trials failed; t0000: " in failed["reason"]["message"]
    for trial in client.trials(failed["id"]):
        assert trial["reason"] is not None
        assert trial["reason"]["code"] == "non_finite_loss"
        assert trial["reason"]["message"] in failed["reason"]["message"] or trial["id"] != "t0000"
    assert set(client.report(failed["id"])["failures"]) == {"t0000", "t0001"}
    with pytest.raises(ClientError, match="encoder"):
        client.download_encoder(failed["id"], tmp_path / "encoder.zip")


def states(client: Client, experiment_id: str) -> list[str]:
    return [trial["state"] for trial in client.trials(experiment_id)]
