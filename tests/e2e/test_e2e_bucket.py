"""A whole stack whose data sets and state lie in a bucket: from the packing to the encoder, its key told to nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx2
import pytest

from service.client import Client
from service.embedded.state_directory import StateDirectory
from service.experiment import submission_id
from tests.conftest import RunningStack, start_stack, stop_stack
from tests.harness.experiments import SHORT, finish, recorded_steps, submit
from tests.harness.object_store import ObjectStore
from tests.harness.written import written
from trainer.context import bundle_key, experiment_key, trial_key
from trainer.storage import open_storage

pytestmark = pytest.mark.ray

KEY: Final = "canary-of-the-object-store"  # this store asks nobody who they are
EPOCHS: Final = 2
SIDE: Final = 16  # px
SHARDS: Final = 3  # of the 240 training images; the test images have a fourth


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with ObjectStore() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in (store.environment | {"AWS_SECRET_ACCESS_KEY": KEY}).items():
            patch.setenv(name, value)
        yield store


@pytest.fixture(scope="module")
def stack(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Run a stack that has no folder of data sets and none for its state."""
    home = tmp_path_factory.mktemp("bucket") / "home"
    running = start_stack(home, SIMCLR_DATASETS=store.uri("sets"), SIMCLR_STORAGE=store.uri("state"), SIMCLR_CPUS="4")
    yield running
    stop_stack(running)


def pack(source: Path, target: str) -> None:
    words = ["datasets", "pack", str(source), target, "--image-size", str(SIDE), "--num-workers", "1"]
    command = [sys.executable, "-m", "service.cli", *words, f"--images-per-shard={240 // SHARDS}"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ, timeout=120)


def test_images_packed_into_a_bucket_are_trained_on_and_the_encoder_is_kept_beside_them(
    stack: RunningStack, store: ObjectStore, datasets_dir: Path, tmp_path: Path
) -> None:
    with Client(stack.url, retry_for_s=60) as client:
        assert "shapes" not in {info["name"] for info in client.datasets()}
        pack(datasets_dir / "shapes.npz", store.uri("sets/shapes"))  # the stack is up: nothing has to be restarted
        assert "shapes" in {info["name"] for info in client.datasets()}
        listed = httpx2.get(f"{stack.url}/datasets/shapes", timeout=30).raise_for_status().json()
        assert (listed["num_train"], listed["native_image_size"]) == (240, SIDE)

        spec = SHORT | {"epochs": EPOCHS, "scaling": {"num_workers": 2}}
        experiment_id = str(submit(client, "from a bucket", spec)["id"])
        shown = finish(client, experiment_id, epochs=EPOCHS)
        client.download_encoder(experiment_id, tmp_path / "encoder.zip")

    assert recorded_steps(stack.mlflow_uri, experiment_id) == list(range(1, 4 * EPOCHS + 1))
    state = open_storage(store.uri("state"))
    marker = json.loads(state.read(trial_key(experiment_id, "t0000", "complete.json")))
    assert (tmp_path / "encoder.zip").read_bytes() == state.read(bundle_key(experiment_id, "t0000", marker))
    assert state.list(trial_key(experiment_id, "t0000", "checkpoints/manifest-"))
    assert json.loads(state.read(experiment_key(experiment_id, "complete.json")))["state"] == "succeeded"
    assert not (stack.home / "storage").exists()
    fetched = [line.split()[1].partition("?")[0] for line in store.link.requests if line.startswith("GET")]
    shards = [path for path in fetched if "/sets/shapes/" in path and path.endswith(".raw")]
    assert len(shards) == len(set(shards)) == SHARDS + 1, "two workers of one node fetch each shard once"

    job = httpx2.get(f"{stack.ray_dashboard}/api/jobs/{submission_id(experiment_id, 1)}", timeout=30)
    blobs = [state.read(key).decode(errors="replace") for key in state.list("")]
    told = [json.dumps(shown), job.raise_for_status().text, *blobs, *written_by_stack(stack.home)]
    assert not [text[:200] for text in told if KEY in text]


def written_by_stack(home: Path) -> list[str]:
    """Return what the processes of a stack wrote, Ray's too."""
    texts = written(home, StateDirectory(path=home).runtime_dir)
    assert len(texts) > 10
    return texts
