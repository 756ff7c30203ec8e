"""What a scheduler hears of a trial, and how a trial that it stops ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness.teams import trial_context
from tests.harness.trajectories import series
from trainer.context import TrialContext
from trainer.epoch_report import EpochReport
from trainer.launch import run_trial_in_process
from trainer.spec import PretrainSpec
from trainer.storage import open_storage

pytestmark = pytest.mark.slow

SPEC: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size": 8},
    "encoder": {"name": "resnet8"},
    "batch_size": 48,
    "epochs": 4,
    "precision": "float32",
    "optim": {"warmup_epochs": 0},
    "evaluation": {"knn_every_epochs": 2, "linear_probe": False},
}


def train(
    folder: Path, datasets: Path, *, name: str = "exp_1", stop_after: int | None = None, **spec: Any
) -> tuple[dict[str, Any], list[EpochReport], str]:
    """Return the trial's context, what its scheduler heard, and how it ended."""
    heard: list[EpochReport] = []

    def hear(report: EpochReport) -> bool:
        heard.append(report)
        return report.epoch == stop_after

    context = trial_context(folder, datasets, name=name)
    result = run_trial_in_process(
        PretrainSpec.model_validate(SPEC | spec), TrialContext.model_validate(context), on_epoch=hear
    )
    return context, heard, result.state


def test_every_epoch_tells_its_last_step_and_what_was_measured_at_its_end(tmp_path: Path, datasets_dir: Path) -> None:
    context, heard, state = train(tmp_path, datasets_dir)

    assert state == "succeeded"
    assert [report.epoch for report in heard] == [1, 2, 3], "the last one is the trial's end, not the scheduler's"
    assert all(report.step == report.epoch * heard[0].step for report in heard)
    assert [report.metrics["images_seen"] for report in heard] == [48 * report.step for report in heard]
    for metric in ("loss", "contrastive_accuracy", "entropy"):
        by_step = series(context, metric)
        assert [report.metrics[metric] for report in heard] == [by_step[report.step] for report in heard]
    assert ["knn_accuracy" in report.metrics for report in heard] == [False, True, False]


def test_a_trial_of_other_length_comes_down_its_own_cosine(tmp_path: Path, datasets_dir: Path) -> None:
    rates = {}
    for epochs in (1, 3):
        context, _, _ = train(tmp_path, datasets_dir, name=f"exp_{epochs}", epochs=epochs)
        rates[epochs] = list(series(context, "lr").values())

    assert len(rates[3]) == 3 * len(rates[1])
    assert rates[1][0] == rates[3][0] == max(rates[3]) > 0
    # One step before its own end each is a step's width of its cosine above 0.
    assert all(found[-1] < found[0] * (2.5 / len(found)) ** 2 for found in rates.values())
    assert rates[3][len(rates[1]) - 1] > 0.7 * rates[3][0], "the longer one has hardly come down by then"


def test_a_trial_that_is_stopped_ends_at_that_epoch_and_leaves_no_encoder(tmp_path: Path, datasets_dir: Path) -> None:
    context, heard, state = train(tmp_path, datasets_dir, stop_after=1)

    assert state == "stopped_early"
    assert len(heard) == 1
    assert max(series(context, "loss")) == heard[0].step
    trial = TrialContext.model_validate(context)
    assert open_storage(trial.storage).list(trial.key("encoder")) == []
