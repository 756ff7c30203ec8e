"""What a finished run computed, read from its storage, and how far two of them are apart."""

from __future__ import annotations

import json
from typing import Any

import torch

from trainer.checkpoint import CheckpointStore
from trainer.context import TrialContext
from trainer.storage import open_storage


def series(context: dict[str, Any], metric: str) -> dict[int, float]:
    """Return the value of a metric by step; fails where a step was recorded twice."""
    trial = TrialContext.model_validate(context)
    storage = open_storage(trial.storage)
    values: dict[int, float] = {}
    for key in storage.list(trial.key("metrics/entry-")):
        for name, step, value, _ in json.loads(storage.read(key)).get("points", ()):
            if name == metric:
                assert step not in values, f"step {step} was recorded twice"
                values[step] = value
    return dict(sorted(values.items()))


def outcome(context: dict[str, Any], *, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the loss of every step and the tensors of the last checkpoint; none may be missing."""
    trial = TrialContext.model_validate(context)
    losses = series(context, "loss")
    checkpoint = CheckpointStore(open_storage(trial.storage), trial, fence=None).load_latest()
    assert checkpoint is not None
    assert checkpoint.step == steps
    assert list(losses) == list(range(1, steps + 1))
    return list(losses.values()), checkpoint.tensors


def starts(context: dict[str, Any]) -> list[int]:
    """Return the step behind which each start of a run began, as what each says of itself has it; 0 is from scratch."""
    return [step if step > 1 else 0 for step in series(context, "parity_error")]


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)
