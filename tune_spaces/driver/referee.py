"""The referee of a sweep: hears each trial's epochs and says whether the trial should stop.

One per sweep, as a Ray actor that every trial can ask. What it heard is in storage before it
answers, so it knows as much after a restart as before.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.context import trial_key
from trainer.epoch_report import EpochReport
from trainer.storage import BlobMissing, open_storage
from tune_spaces.driver.scheduler import Record, should_stop
from tune_spaces.spec import SweepSpec

__all__ = ["AskReferee", "Referee"]

logger = logging.getLogger(__name__)

FILE = "epochs.json"


class Referee:
    """Keeps the history of every trial by epoch, and decides by it."""

    def __init__(
        self, *, sweep: Mapping[str, Any], storage: str, experiment_id: str, epochs: Mapping[str, int]
    ) -> None:
        self._sweep = SweepSpec.model_validate(sweep)
        self._storage = open_storage(storage)
        self._experiment_id = experiment_id
        self._epochs = dict(epochs)
        self._records: dict[str, list[Record]] = {trial: self._read(trial) for trial in epochs}

    def report(self, trial: str, epochs: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Return whether the trial should stop; an epoch heard again, after a restart, counts once."""
        value = metrics.get(self._sweep.metric)
        if value is None:
            return False
        self._epochs[trial] = epochs
        records = self._records.setdefault(trial, [])
        if not records or epoch > records[-1][0]:
            records.append((epoch, value))
            self._write(trial)
        cohort = {other: found for other, found in self._records.items() if self._epochs.get(other) == epochs}
        heard = {**cohort, trial: [record for record in records if record[0] <= epoch]}
        scheduler, mode = self._sweep.scheduler, self._sweep.mode
        return should_stop(scheduler, trial=trial, epochs=epochs, cohort=heard, mode=mode)

    def _read(self, trial: str) -> list[Record]:
        try:
            return [(epoch, value) for epoch, value in json.loads(self._storage.read(self._key(trial)))]
        except BlobMissing:
            return []

    def _write(self, trial: str) -> None:
        try:
            self._storage.write(self._key(trial), json.dumps(self._records[trial]).encode())
        except OSError as error:  # known to this referee all the same; only a restart would miss it
            logger.warning("the epochs of %s were not written: %s", trial, error)

    def _key(self, trial: str) -> str:
        return trial_key(self._experiment_id, trial, FILE)


@dataclass(frozen=True, kw_only=True)
class AskReferee:
    """What a trial calls at the end of an epoch, in whatever process it runs; it pickles."""

    referee: Any  # handle of the actor
    trial: str
    epochs: int

    def __call__(self, report: EpochReport) -> bool:
        """Return whether to stop early."""
        import ray

        answer = self.referee.report.remote(self.trial, self.epochs, report.epoch, report.metrics)
        return bool(ray.get(answer))
