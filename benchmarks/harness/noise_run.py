"""A small run on random images, and its parts: what several benchmarks measure. Imports torch late."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from benchmarks.harness.turns import Turns
from trainer.context import PRETRAIN_TRIAL_ID, TrialContext
from trainer.spec import PretrainSpec

if TYPE_CHECKING:
    from trainer.epoch_report import EpochReport
    from trainer.step import Stepper
    from trainer.views import ViewDrawer

__all__ = ["BATCH_SIZE", "SIDE", "build_parts", "noise_spec", "train_in_turns", "trial_context", "write_noise"]

SIDE: Final = 32  # px
BATCH_SIZE: Final = 256  # N
VALIDATION_RATIO: Final = 0.01


def write_noise(folder: Path, *, num_steps: int) -> None:
    """Register the data set `noise` of random images: `num_steps` batches an epoch."""
    import numpy as np

    datasets = folder / "datasets"
    datasets.mkdir()
    num_images = round(num_steps * BATCH_SIZE / (1 - VALIDATION_RATIO)) + BATCH_SIZE // 2
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(datasets / "noise.npz", train_images=pixels)


def noise_spec(**fields: Any) -> PretrainSpec:
    """Return resnet8 on `noise`: the defaults, without an evaluation on the way."""
    document: dict[str, Any] = {
        "data": {"dataset": "noise", "image_size": SIDE, "validation_ratio": VALIDATION_RATIO},
        "encoder": {"name": "resnet8"},
        "batch_size": BATCH_SIZE,
        "epochs": 1000,
        "evaluation": {"knn_every_epochs": 0, "linear_probe": False},
    }
    return PretrainSpec.model_validate(document | fields)


def trial_context(folder: Path, name: str, *, mlflow_uri: str | None = None) -> TrialContext:
    """Return the context of a trial with a storage of its own and the data sets that all share."""
    return TrialContext(
        experiment_id=f"exp_{name}",
        experiment_name=name,
        trial_id=PRETRAIN_TRIAL_ID,
        attempt=1,
        storage=str(folder / name),
        mlflow_uri=mlflow_uri,
        datasets_dir=str(folder / "datasets"),
        cache_dir=str(folder / "cache"),
        is_only_trial=True,
    )


def train_in_turns(spec: PretrainSpec, context: TrialContext, turns: Turns) -> None:
    """Train alone in this process: a turn is an epoch, counted in images, with all that a run does beside it."""
    from trainer.loop import train
    from trainer.team import Team

    def on_epoch(report: EpochReport) -> bool:
        turns.over(report.step / report.epoch * spec.batch_size)
        return False

    train(spec, context, Team(), on_epoch=on_epoch)


def build_parts(spec: PretrainSpec, *, batch_norm: Literal["torch", "global"] = "torch") -> tuple[ViewDrawer, Stepper]:
    """Return what draws the views and what makes the updates of a run alone, as the loop builds them (not float64).

    `batch_norm`: the layers of torch, or those of the loop, which are more exact and slower.
    """
    import torch

    from trainer.batch_norm import globalize_batch_norm
    from trainer.learner import build_learner
    from trainer.optim import build_optimizer
    from trainer.precision import resolve_precision
    from trainer.step import Stepper
    from trainer.team import Team
    from trainer.views import ViewDrawer

    precision = resolve_precision(spec.precision, torch.device("cpu"))
    learner = build_learner(spec, num_classes=None, group=None).to(memory_format=torch.channels_last)
    if batch_norm == "global":
        globalize_batch_norm(learner, group=None)
    drawer = ViewDrawer(spec.views, image_size=SIDE, seed=spec.seed, dtype=precision.dtype, channels_last=True)
    optimizer = build_optimizer(spec.optim, learner)
    return drawer, Stepper(learner.train(), optimizer, team=Team(), precision=precision, micro_batch=None)
