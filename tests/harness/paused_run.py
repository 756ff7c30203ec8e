"""A run paused after its first steps, to be gone on with elsewhere, and what it comes to in one process."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

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
        self.storage = folder / "storage"
        self._folder = folder
        self._steps = steps
        _begin_and_pause(spec, self._context(self.storage, attempt=1))
        alone = self._context(self.copy("alone"), attempt=2)
        run_trial_in_process(PretrainSpec.model_validate(spec), alone)
        self._losses, self._tensors = outcome(alone.model_dump(), steps=steps)

    def copy(self, name: str) -> Path:
        """Return a storage of that name, as it was after the pause."""
        return shutil.copytree(self.storage, self._folder / name)

    def distance(self, storage: Path) -> float:
        """Return how far the run that ended in `storage` is from one process: any loss, weight or momentum.

        Fails where a step was lost or recorded twice.
        """
        losses, tensors = outcome(self._context(storage, attempt=2).model_dump(), steps=self._steps)
        largest = max(abs(a - b) for a, b in zip(losses, self._losses, strict=True))
        return max(largest, largest_difference(tensors, self._tensors))

    def _context(self, storage: Path, *, attempt: int) -> TrialContext:
        return TrialContext(
            experiment_id=EXPERIMENT,
            experiment_name=EXPERIMENT,
            trial_id="t0000",
            attempt=attempt,
            storage=str(storage),
            datasets_dir=str(self._folder / "datasets"),
            cache_dir=str(self._folder / "cache"),
        )


def _begin_and_pause(spec: dict[str, Any], context: TrialContext) -> None:
    storage, key = open_storage(context.storage), experiment_key(EXPERIMENT, "stop.json")
    storage.write(key, json.dumps({"kind": "pause", "attempt": context.attempt}).encode())
    with suppress(Stopped):
        run_trial_in_process(PretrainSpec.model_validate(spec), context)
    storage.delete(key)
