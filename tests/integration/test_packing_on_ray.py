"""Packing as a job of a cluster: killed with its driver, gone on with, the same as by one process."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.conftest import RunningStack
from tests.harness.object_store import ObjectStore
from trainer.data.packed import verify
from trainer.data.packing import pack, source_at
from trainer.storage import open_storage

pytestmark = pytest.mark.ray

DEADLINE_S = 120.0
ENDED = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}
SIDE = 96  # px
IMAGES_PER_SHARD = 6


def write_pictures(root: Path, *, count: int) -> Path:
    """Write pictures that take a while to decode, so that a packing can be caught in the middle."""
    generator = np.random.default_rng(0)
    small = [generator.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(count)]
    for index, pixels in enumerate(small):
        folder = root / "train" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((700, 700)).save(folder / f"{index:04}.jpg")
    return root


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_packing_on_ray_that_was_killed_goes_on_and_is_what_one_process_writes(
    tmp_path: Path, stack: RunningStack, object_store: ObjectStore, place: str
) -> None:
    source = write_pictures(tmp_path / "source", count=300)
    target = str(tmp_path / "sets" / "pictures") if place == "folder" else object_store.uri(f"{tmp_path.name}/pictures")
    files = open_storage(target)
    client = JobSubmissionClient(stack.ray_dashboard)

    def submit(*words: str) -> str:
        command = ["-m", "service.cli", "datasets", "pack", str(source), target, "--image-size", str(SIDE)]
        options = ["--num-workers", "2", "--images-per-shard", str(IMAGES_PER_SHARD), "--json"]
        job: str = client.submit_job(
            entrypoint=" ".join(["exec", sys.executable, *command, *options, *words]),
            runtime_env={"env_vars": {"PYTHONPATH": str(Path.cwd()), **object_store.environment}},
        )
        return job

    killed = submit()
    wait_until(lambda: client.get_job_info(killed).driver_info is not None)
    driver = client.get_job_info(killed).driver_info
    assert driver is not None
    wait_until(lambda: len(files.list(".packing/train-")) >= 3)
    os.kill(int(driver.pid), signal.SIGKILL)
    wait_until(lambda: client.get_job_status(killed) in ENDED)
    assert not files.list("manifest.json")

    resumed = submit("--resume")
    wait_until(lambda: client.get_job_status(resumed) in ENDED)
    log = client.get_job_logs(resumed)
    assert client.get_job_status(resumed) == JobStatus.SUCCEEDED, log

    answer = json.loads(log[log.index("{\n") : log.rindex("}") + 1])
    assert answer["shards_kept"] >= 3
    assert answer["shards_kept"] + answer["shards_written"] == 300 // IMAGES_PER_SHARD
    alone = pack(source_at(source), tmp_path / "alone", image_size=SIDE, images_per_shard=IMAGES_PER_SHARD).manifest
    assert verify(target) == alone
