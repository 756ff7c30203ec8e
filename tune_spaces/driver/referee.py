"""The referee of a sweep: hears each trial's epochs and says whether the trial should stop.

One per sweep, as a Ray actor that every trial can ask. What it heard and what it said to it are in
storage before it answers, so after a restart it knows as much and says the same: a trial that hears
nothing of its answer, since it died meanwhile, is told it again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.context import trial_key
from trainer.epoch_report import EpochReport
from trainer.storage import BlobMissing, Storage, open_storage
from trainer.trial_table import read_trial_table
from tune_spaces.driver.scheduler import Record, should_stop
from tune_spaces.spec import SweepSpec

__all__ = ["AskReferee", "Referee", "told_to_stop"]

logger = logging.getLogger(__name__)

FILE = "epochs.json"


_Said = tuple[int, float, bool]  # (epoch from 1, value, whether the trial was told to stop), ascending


class Referee:
    """Keeps the history of every trial by epoch, and decides by it; what was decided once stays."""

    def __init__(
        self, *, sweep: Mapping[str, Any], storage: str, experiment_id: str, epochs: Mapping[str, int]
    ) -> None:
        self._sweep = SweepSpec.model_validate(sweep)
        self._storage = open_storage(storage)
        self._experiment_id = experiment_id
        self._epochs = {**self._suggested(), **epochs}
        self._records: dict[str, list[_Said]] = {trial: self._read(trial) for trial in self._epochs}

    def report(self, trial: str, epochs: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Return whether the trial should stop; an epoch heard again, after a restart, is answered as before."""
        self._epochs[trial] = epochs
        if trial not in self._records:
            self._records[trial] = self._read(trial)
        records = self._records[trial]
        if any(is_stop and epoch >= told for told, _, is_stop in records):
            return True
        value = metrics.get(self._sweep.metric)
        if value is None or (records and epoch <= records[-1][0]):
            return False
        is_stop = self._decide(trial, epochs, (epoch, value))
        records.append((epoch, value, is_stop))
        self._write(trial)
        return is_stop

    def _decide(self, trial: str, epochs: int, newest: Record) -> bool:
        cohort = {
            other: [(epoch, value) for epoch, value, _ in records]
            for other, records in self._records.items()
            if self._epochs[other] == epochs
        }
        cohort[trial].append(newest)
        scheduler, mode = self._sweep.scheduler, self._sweep.mode
        return should_stop(scheduler, trial=trial, epochs=epochs, cohort=cohort, mode=mode)

    def _suggested(self) -> dict[str, int]:
        """Return the epochs of the trials in the table: those suggested since the driver started are there alone."""
        rows = read_trial_table(self._storage, self._experiment_id)
        return {row.id: row.params.get("epochs", self._sweep.base_spec().epochs) for row in rows}

    def _read(self, trial: str) -> list[_Said]:
        return _read(self._storage, self._key(trial))

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


def told_to_stop(storage: Storage, experiment_id: str, trial: str) -> bool:
    """Return whether the referee ended a trial: otherwise one that was stopped early was ended by a limit."""
    return any(is_stop for _, _, is_stop in _read(storage, trial_key(experiment_id, trial, FILE)))


def _read(storage: Storage, key: str) -> list[_Said]:
    try:
        entries = json.loads(storage.read(key))
    except BlobMissing:
        return []
    # Entries of two items are of a version that kept no decisions: whoever it told to stop has ended.
    return [(epoch, value, any(decision)) for epoch, value, *decision in entries]
