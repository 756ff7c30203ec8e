"""An experiment is held to the data that its first start saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.harness.teams import trial_context
from trainer.context import ParentTrial, TrialContext
from trainer.data.dataset import Dataset, Subset
from trainer.errors import DataError
from trainer.launch import run_trial_in_process
from trainer.provenance import require_same_data
from trainer.spec import DataSpec, PretrainSpec
from trainer.storage import open_storage
from trainer.team import Team

OLD, NEW = "a" * 64, "b" * 64


def dataset(digest: str) -> Dataset:
    nothing = Subset(array=np.zeros((0, 8, 8, 3), np.uint8), sample_ids=np.zeros(0, np.int64), labels=None)
    return Dataset(
        name="shapes",
        image_size=8,
        digest=digest,
        class_names=None,
        pretrain=nothing,
        validation=nothing,
        num_test=0,
        warnings=(),
        _test=lambda: nothing,
    )


def start(folder: Path, digest: str, *, image_size: int = 32, **changes: object) -> None:
    context = TrialContext.model_validate(trial_context(folder, folder)).model_copy(update=changes)
    spec = DataSpec(dataset="shapes", image_size=image_size)
    require_same_data(open_storage(context.storage), context, spec, dataset(digest), Team())


def test_other_data_is_refused_naming_both_digests_and_the_way_out(tmp_path: Path) -> None:
    start(tmp_path, OLD)
    start(tmp_path, OLD, attempt=2)
    with pytest.raises(DataError, match=r"aaaaaaaaaaaa and is bbbbbbbbbbbb.*clone") as refusal:
        start(tmp_path, NEW, attempt=3)
    assert refusal.value.context["first_digest"] == OLD
    assert not refusal.value.retryable
    start(tmp_path, OLD, attempt=4)  # the old images are back


def test_trials_that_see_the_same_data_are_held_to_one_digest_and_other_sizes_to_their_own(tmp_path: Path) -> None:
    start(tmp_path, OLD)
    start(tmp_path, NEW, image_size=64, trial_id="t0001")
    with pytest.raises(DataError):
        start(tmp_path, NEW, trial_id="t0002")


def test_a_continuation_is_held_to_its_parents_data_and_a_clone_is_not(tmp_path: Path) -> None:
    start(tmp_path, OLD)
    parent = ParentTrial(experiment_id="exp_1", trial_id="t0000")
    with pytest.raises(DataError):
        start(tmp_path, NEW, experiment_id="exp_2", parent=parent)
    start(tmp_path, OLD, experiment_id="exp_2", parent=parent)
    start(tmp_path, NEW, experiment_id="exp_3")


@pytest.mark.slow
def test_a_run_whose_images_changed_between_attempts_trains_on_none_of_them(tmp_path: Path) -> None:
    spec = PretrainSpec.model_validate(
        {
            "data": {"dataset": "tiny", "image_size": 8},
            "encoder": {"name": "resnet8"},
            "batch_size": 8,
            "epochs": 1,
            "evaluation": {"linear_probe": False},
        }
    )
    context = TrialContext.model_validate(trial_context(tmp_path / "run", tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    save(tmp_path, images)
    run_trial_in_process(spec, context)
    storage = open_storage(context.storage)
    marker = json.loads(storage.read(context.key("complete.json")))
    assert (marker["metrics"]["num_workers"], marker["metrics"]["parity_error"]) == (1, 0)
    storage.delete(context.key("complete.json"))  # as if it had been killed before it could write it
    images[3] ^= 1
    save(tmp_path, images)
    before = storage.list("experiments/")
    with pytest.raises(DataError, match="clone the experiment"):
        run_trial_in_process(spec, context.model_copy(update={"attempt": 2}))
    new = set(storage.list("experiments/")) - set(before)
    assert all("fence" in key or "timeline" in key for key in new), new


def save(folder: Path, images: NDArray[np.uint8]) -> None:
    labels = np.arange(len(images)) % 2
    np.savez(folder / "tiny.npz", train_images=images, train_labels=labels, classes=np.array(["even", "odd"]))
