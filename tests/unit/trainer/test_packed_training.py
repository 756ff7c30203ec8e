"""A run does not tell packed images from unpacked ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness.object_store import ObjectStore
from tests.harness.teams import run_team, train_trial, trial_context
from tests.harness.trajectories import largest_difference, outcome
from trainer.data.packing import pack, source_at

pytestmark = pytest.mark.slow

SPEC: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size": 16},
    "encoder": {"name": "resnet8"},
    "projection_head": {"dim": 16},
    "batch_size": 48,
    "epochs": 2,
    "optim": {"warmup_epochs": 0},
    "precision": "float32",
}
STEPS = 8  # 216 images to pretrain on


@pytest.mark.parametrize("workers", [1, 2])
def test_images_unpacked_packed_or_in_a_bucket_give_the_same_run_bit_for_bit(
    tmp_path: Path, datasets_dir: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "packed"
    pack(source_at(datasets_dir / "shapes.npz"), packed / "shapes", image_size=16, images_per_shard=50)
    runs = []
    with ObjectStore() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        sets = store.uri(tmp_path.name)
        pack(source_at(datasets_dir / "shapes.npz"), f"{sets}/shapes", image_size=16, images_per_shard=70)
        for name, datasets in (("plain", datasets_dir), ("mapped", packed), ("bucket", sets)):
            context = trial_context(tmp_path / name / "run", datasets)
            run_team(workers, train_trial, SPEC, context)
            runs.append(outcome(context, steps=STEPS))
        fetched = [line for line in store.link.requests if line.startswith("GET") and ".raw " in line]
    (plain_losses, plain), *others = runs
    for losses, tensors in others:
        assert losses == plain_losses
        assert largest_difference(tensors, plain) == 0
    assert not (tmp_path / "mapped" / "cache" / "datasets").exists(), "it is read where it lies"
    assert len(fetched) == len(set(fetched)) == 5, "a node fetches each shard once"
