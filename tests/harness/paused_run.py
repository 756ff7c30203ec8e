"""A run paused after its first steps, to be gone on with elsewhere, and what it comes to in one process."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch

from tests.harness.object_store import copy_blobs
from tests.harness.trajectories import largest_difference, outcome
from trainer.context import TrialContext, experiment_key
from trainer.errors import Stopped
from trainer.launch import run_trial_in_process
from trainer.spec import PretrainSpec
from trainer.storage import open_storage

__all__ = ["EXPERIMENT", "PausedRun"]

EXPERIMENT: Final = "exp_1"


class PausedRun:
    """The first attempt of `spec` in `folder/storage`, over the data sets in `folder/datasets`."""

    def __init__(self, folder: Path, spec: dict[str, Any], *, steps: int) -> None:
        self._storage = str(folder / "storage")
        self._folder = folder
        self._steps = steps
        torch.set_num_threads(1)  # on small images threads spin for each other, minutes where cores are taken
        _begin_and_pause(spec, self._context(self._storage, attempt=1))
        alone = self._context(self.copy(str(folder / "alone")), attempt=2)
        run_trial_in_process(PretrainSpec.model_validate(spec), alone)
        self._losses, self._tensors = outcome(alone.model_dump(), steps=steps)

    def copy(self, uri: str) -> str:
        """Fill the storage at `uri` with what was there after the pause, and return its address."""
        copy_blobs(open_storage(self._storage), uri)
        return uri

    def distance(self, storage: str) -> float:
        """Return how far the run that ended in `storage` is from one process: any loss, weight or momentum.

        Fails where a step was lost or recorded twice.
        """
        losses, tensors = outcome(self._context(storage, attempt=2).model_dump(), steps=self._steps)
        largest = max(abs(a - b) for a, b in zip(losses, self._losses, strict=True))
        return max(largest, largest_difference(tensors, self._tensors))

    def _context(self, storage: str, *, attempt: int) -> TrialContext:
        return TrialContext(
            experiment_id=EXPERIMENT,
            experiment_name=EXPERIMENT,
            trial_id="t0000",
            attempt=attempt,
            storage=storage,
            datasets_dir=str(self._folder / "datasets"),
            cache_dir=str(self._folder / "cache"),
        )


def _begin_and_pause(spec: dict[str, Any], context: TrialContext) -> None:
    storage, key = open_storage(context.storage), experiment_key(EXPERIMENT, "stop.json")
    storage.write(key, json.dumps({"kind": "pause", "attempt": context.attempt}).encode())
    with suppress(Stopped):
        run_trial_in_process(PretrainSpec.model_validate(spec), context)
    storage.delete(key)
