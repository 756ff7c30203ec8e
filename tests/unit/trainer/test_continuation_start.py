"""A continued pretraining starts from its parent's checkpoint or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.harness.teams import trial_context
from trainer.context import ParentTrial, TrialContext
from trainer.errors import CheckpointMissing
from trainer.launch import run_trial_in_process
from trainer.spec import PretrainSpec

pytestmark = pytest.mark.slow

SPEC = {
    "data": {"dataset": "tiny", "image_size": 8},
    "encoder": {"name": "resnet8"},
    "batch_size": 8,
    "evaluation": {"linear_probe": False},
}


def run(folder: Path, name: str, *, epochs: int, parent: str | None) -> int:
    link = ParentTrial(experiment_id=parent, trial_id="t0000") if parent else None
    context = TrialContext.model_validate(trial_context(folder, folder, name=name))
    own = context.model_copy(update={"parent": link, "is_only_trial": True})
    return run_trial_in_process(PretrainSpec.model_validate(SPEC | {"epochs": epochs}), own).step


def test_a_continued_run_without_its_parents_checkpoint_does_not_start_over(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "tiny.npz", train_images=images)
    with pytest.raises(CheckpointMissing, match=r"exp_gone.*clone it") as refusal:
        run(tmp_path, "exp_2", epochs=2, parent="exp_gone")
    assert not refusal.value.retryable
    done = run(tmp_path, "exp_1", epochs=1, parent=None)
    assert run(tmp_path, "exp_3", epochs=2, parent="exp_1") == 2 * done
