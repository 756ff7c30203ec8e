"""Which ended trials still have something that MLflow did not take."""

from __future__ import annotations

import json
from typing import Any

from trainer.context import experiment_key, trial_key
from trainer.storage import BlobMissing, Storage

__all__ = ["unrecorded_trials"]

_MARKER = "complete.json"


def unrecorded_trials(storage: Storage, experiment_id: str) -> list[str]:
    """Return the ids of the trials that ended with something unsent. Raises OSError."""
    return [
        trial_id
        for trial_id in _trial_ids(storage, experiment_id)
        if not _read(storage, trial_key(experiment_id, trial_id, _MARKER)).get("is_recorded", True)
    ]


def _trial_ids(storage: Storage, experiment_id: str) -> list[str]:
    """Return the ids in the trial table; without one, of every trial that left a marker."""
    rows = _read(storage, experiment_key(experiment_id, "trials.json")).get("trials")
    if rows is not None:
        return [str(row["id"]) for row in rows]
    prefix = experiment_key(experiment_id, "trials/")
    # lists every blob of every trial, its outbox too: thousands
    keys = [key.removeprefix(prefix).partition("/") for key in storage.list(prefix)]
    return [trial_id for trial_id, _, name in keys if name == _MARKER]


def _read(storage: Storage, key: str) -> dict[str, Any]:
    """Return a JSON object, {} where there is none."""
    try:
        document = json.loads(storage.read(key))
    except (BlobMissing, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
