"""The trial table of an experiment: which trials there are and how far each got.

One blob, owned by the job's driver and replaced whole on each change; the service reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trainer.context import experiment_key
from trainer.storage import BlobMissing, Storage

__all__ = ["TrialRow", "TrialRowState", "read_trial_table", "write_trial_table"]

TrialRowState = Literal["pending", "running", "stopped_early", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial as the service shows it."""

    id: str
    state: TrialRowState = "pending"
    params: Mapping[str, Any] = field(default_factory=dict)  # dotted path -> scalar
    metrics: Mapping[str, float] = field(default_factory=dict)  # last values
    best: Mapping[str, Any] | None = None  # {"metric", "value", "step"}
    attempt: int | None = None
    mlflow_run_id: str | None = None
    reason: Mapping[str, Any] | None = None  # of a failure, or the limit that ended it or left it out


def write_trial_table(storage: Storage, experiment_id: str, rows: Iterable[TrialRow]) -> None:
    """Replace the table."""
    document = {"trials": [asdict(row) for row in rows]}
    storage.write(experiment_key(experiment_id, "trials.json"), json.dumps(document).encode())


def read_trial_table(storage: Storage, experiment_id: str) -> list[TrialRow]:
    """Return the rows, [] before there is a table."""
    try:
        document = json.loads(storage.read(experiment_key(experiment_id, "trials.json")))
    except BlobMissing:
        return []
    return [TrialRow(**row) for row in document["trials"]]
