"""Which MLflow runs of an ended experiment still lack something that storage has."""

from __future__ import annotations

import json
from typing import Any, Final

from trainer.context import experiment_key, trial_key
from trainer.storage import BlobMissing, Storage

__all__ = ["PARENT_RECORD", "PARENT_RUN", "unrecorded_runs"]

PARENT_RUN: Final = "parent"  # stands where a trial's id does
PARENT_RECORD: Final = "parent_run.json"  # of an experiment whose driver sees to its parent run

_MARKER: Final = "complete.json"
_DESCRIPTION: Final = "metrics/description.json"  # there before the first entry of an outbox


def unrecorded_runs(storage: Storage, experiment_id: str) -> list[str]:
    """Return the ids of the trials whose runs lack something, then PARENT_RUN if the experiment's own does.

    Raises:
        OSError: If storage does not answer.
    """
    trials = [
        trial_id
        for trial_id in _trial_ids(storage, experiment_id)
        if _lacks_something(storage, experiment_id, trial_id)
    ]
    parent = _read(storage, experiment_key(experiment_id, PARENT_RECORD))
    return trials if parent.get("is_recorded", True) else [*trials, PARENT_RUN]


def _lacks_something(storage: Storage, experiment_id: str, trial_id: str) -> bool:
    marker = _read(storage, trial_key(experiment_id, trial_id, _MARKER))
    if marker:
        return not marker.get("is_recorded", True)
    # It failed, was stopped or was killed: its outbox alone says what MLflow has.
    sent = int(_read(storage, trial_key(experiment_id, trial_id, "metrics/sent.json")).get("number", 0))
    return _exists(storage, trial_key(experiment_id, trial_id, f"metrics/entry-{sent + 1:08d}.json"))


def _trial_ids(storage: Storage, experiment_id: str) -> list[str]:
    """Return the ids in the trial table; without one, of every trial that began to record."""
    rows = _read(storage, experiment_key(experiment_id, "trials.json")).get("trials")
    if rows is not None:
        return [str(row["id"]) for row in rows]
    prefix = experiment_key(experiment_id, "trials/")
    # lists every blob of every trial, its outbox too: thousands
    keys = [key.removeprefix(prefix).partition("/") for key in storage.list(prefix)]
    return sorted({trial_id for trial_id, _, name in keys if name in (_MARKER, _DESCRIPTION)})


def _exists(storage: Storage, key: str) -> bool:
    try:
        storage.read(key)
    except BlobMissing:
        return False
    return True


def _read(storage: Storage, key: str) -> dict[str, Any]:
    """Return a JSON object, {} where there is none."""
    try:
        document = json.loads(storage.read(key))
    except (BlobMissing, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
