"""The main job through the API: any number of workers computes the same run, and leaves what it should."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from service.client import Client, ClientError, Experiment
from tests.conftest import RunningStack
from tests.harness.experiments import SHORT, finish, losses, submit
from trainer.checkpoint import CheckpointStore
from trainer.context import TrialContext
from trainer.storage import open_storage

pytestmark = pytest.mark.ray

FLOAT64: dict[str, Any] = SHORT | {
    "precision": "float64",
    "evaluation": {"knn_every_epochs": 2, "linear_probe": True, "probe_z": True},
}


@pytest.fixture(scope="module")
def client(stack: RunningStack) -> Iterator[Client]:
    with Client(stack.url) as client:
        yield client


@pytest.fixture(scope="module")
def by_workers(client: Client) -> dict[int, Experiment]:
    """Run one spec on 1, 2 and 4 workers, all at once."""
    started = {
        workers: submit(client, f"w{workers}", FLOAT64 | {"scaling": {"num_workers": workers}}) for workers in (1, 2, 4)
    }
    return {workers: finish(client, experiment["id"], epochs=5) for workers, experiment in started.items()}


def test_the_number_of_workers_is_no_hyperparameter(
    stack: RunningStack, client: Client, by_workers: dict[int, Experiment]
) -> None:
    assert len({experiment["spec_digest"] for experiment in by_workers.values()}) == 1
    alone = losses(client, by_workers[1]["id"])
    weights = final_weights(stack, by_workers[1]["id"])
    for workers in (2, 4):
        shared = losses(client, by_workers[workers]["id"])
        assert max(abs(a - b) for a, b in zip(shared, alone, strict=True)) <= 1e-9
        others = final_weights(stack, by_workers[workers]["id"])
        assert max(float((others[name] - weights[name]).abs().max()) for name in weights) <= 1e-9


def final_weights(stack: RunningStack, experiment_id: str) -> dict[str, Any]:
    context = TrialContext(
        experiment_id=experiment_id,
        experiment_name="",
        trial_id="t0000",
        attempt=1,
        storage=stack.storage,
        cache_dir="",
    )
    checkpoint = CheckpointStore(open_storage(stack.storage), context, fence=None).load_latest()
    assert checkpoint is not None
    assert checkpoint.step == 20
    return {name: tensor.double() for name, tensor in checkpoint.tensors.items()}


def test_metrics_are_where_the_contract_says(client: Client, by_workers: dict[int, Experiment]) -> None:
    keys = ["loss", "knn_accuracy", "epoch", "lr", "entropy", "contrastive_accuracy", "linear_accuracy_z", "unknown"]
    series = client.metrics(by_workers[2]["id"], keys=keys)["series"]
    assert {key: len(series[key]) for key in keys} == {
        "loss": 20,
        "knn_accuracy": 3,  # after epochs 2 and 4, and the last one always
        "epoch": 5,
        "lr": 20,
        "entropy": 20,
        "contrastive_accuracy": 20,
        "linear_accuracy_z": 1,
        "unknown": 0,
    }
    assert [point["step"] for point in series["knn_accuracy"]] == [8, 16, 20]
    (seen,) = client.metrics(by_workers[2]["id"], keys=["images_seen"])["series"].values()
    batch_size = by_workers[2]["spec"]["batch_size"]
    assert [(point["step"], point["value"]) for point in seen] == [
        (step, step * batch_size) for step in range(4, 21, 4)
    ]
    (trial,) = client.trials(by_workers[2]["id"])
    for name in ("raw_pixel_knn_accuracy", "random_encoder_knn_accuracy", "test_knn_accuracy", "test_linear_accuracy"):
        value = trial["metrics"][name]
        assert value is not None
        assert 0 <= value <= 1


def test_mlflow_has_one_parent_and_one_trial_run_with_all_that_a_run_leaves(
    stack: RunningStack, by_workers: dict[int, Experiment]
) -> None:
    mlflow = MlflowClient(stack.mlflow_uri)
    kept = mlflow.get_experiment_by_name("simclr")
    assert kept is not None
    for workers, experiment in by_workers.items():
        runs = mlflow.search_runs(
            [str(kept.experiment_id)],
            filter_string=f"tags.`simclr.experiment_id` = '{experiment['id']}'",
        )
        assert sorted(run.data.tags["simclr.role"] for run in runs) == ["parent", "trial"]
        assert {run.info.status for run in runs} == {"FINISHED"}
        (trial,) = (run for run in runs if run.data.tags["simclr.role"] == "trial")
        (parent,) = (run for run in runs if run.data.tags["simclr.role"] == "parent")
        assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert trial.data.tags["simclr.num_workers"] == str(workers)
        assert trial.data.params["loss.temperature"] == "0.5"
        assert trial.inputs is not None
        assert trial.inputs.dataset_inputs[0].dataset.name == "shapes"
        artifacts = {
            item.path for folder in ("encoder", "pictures") for item in mlflow.list_artifacts(trial.info.run_id, folder)
        }
        assert artifacts >= {
            "encoder/encoder.safetensors",
            "encoder/encoder.json",
            "encoder/MODEL_CARD.md",
            "pictures/loss.png",
            "pictures/knn_accuracy.png",
            "pictures/views.png",
            "pictures/embedding.png",
            "pictures/neighbours.png",
            "pictures/confusion.png",
        }


def test_the_bundle_loads_where_nothing_of_this_project_is(
    client: Client, by_workers: dict[int, Experiment], tmp_path: Path
) -> None:
    target = tmp_path / "encoder.zip"
    client.download_encoder(by_workers[2]["id"], target)
    with zipfile.ZipFile(io.BytesIO(target.read_bytes())) as archive:
        archive.extractall(tmp_path / "bundle")
    script = """
import sys, torch
from encoder import load_encoder, to_input
h = load_encoder(".")(to_input(torch.zeros(2, 16, 16, 3, dtype=torch.uint8)))
assert h.shape == (2, 64), h.shape
assert not {"trainer", "service", "ray", "mlflow", "pickle5"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "bundle", check=True)
    record = json.loads((tmp_path / "bundle" / "encoder.json").read_text())
    assert record["width_of_h"] == 64


def test_a_run_says_when_each_phase_began(client: Client, by_workers: dict[int, Experiment]) -> None:
    (attempt,) = client.timeline(by_workers[1]["id"])
    names = [phase["name"] for phase in attempt["phases"]]
    assert names == ["queue", "start", "first_step", "train", "evaluate", "export"]


def test_the_story_of_an_experiment_is_told_as_events(client: Client, by_workers: dict[int, Experiment]) -> None:
    events = list(client.watch(by_workers[4]["id"]))
    states = [event.data["state"] for event in events if event.type == "state"]
    assert states == ["queued", "starting", "running", "succeeded"]
    sequences = [int(event.id) for event in events if event.type in ("state", "trial")]
    assert sequences == sorted(set(sequences))


def test_an_unreadable_image_is_named(client: Client, datasets_dir: Path) -> None:
    folder = datasets_dir / "broken" / "train"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(40):
            Image.new("RGB", (16, 16), (index, 99, 0)).save(folder / name / f"{index}.png")
    (folder / "a" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    with pytest.raises(ClientError, match=r"broken/train/a/bad\.png is no image that can be read") as refused:
        submit(client, "broken", SHORT | {"data": {"dataset": "broken", "image_size": 16}})
    assert [field["pointer"] for field in refused.value.fields] == ["/spec/data/dataset"]


def test_unlabelled_images_are_pretrained_on(client: Client, datasets_dir: Path) -> None:
    images = np.random.default_rng(1).integers(0, 255, (240, 16, 16, 3), dtype=np.uint8)
    np.savez(datasets_dir / "unlabelled.npz", train_images=images)
    experiment = submit(client, "unlabelled", SHORT | {"data": {"dataset": "unlabelled", "image_size": 16}})
    finish(client, experiment["id"], epochs=5)
    (trial,) = client.trials(experiment["id"])
    assert "h_effective_rank" in trial["metrics"]
    assert "knn_accuracy" not in trial["metrics"]
