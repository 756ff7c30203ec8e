"""Which ended trials still have something that MLflow did not take."""

from __future__ import annotations

import json

from trainer.context import experiment_key
from trainer.storage import Storage

__all__ = ["unrecorded_trials"]

_MARKER = "complete.json"


def unrecorded_trials(storage: Storage, experiment_id: str) -> list[str]:
    """Return the ids of the trials that ended with something unsent. Raises OSError."""
    prefix = experiment_key(experiment_id, "trials/")
    markers = [key for key in storage.list(prefix) if key.endswith(f"/{_MARKER}")]
    return [
        key.removeprefix(prefix).removesuffix(f"/{_MARKER}")
        for key in markers
        if not json.loads(storage.read(key)).get("is_recorded", True)
    ]
