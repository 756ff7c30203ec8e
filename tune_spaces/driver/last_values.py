"""The last values of a trial's metrics: what its completion marker says, and its last steps."""

from __future__ import annotations

import json

from trainer import metric_names
from trainer.context import TrialContext
from trainer.launch import TrialResult
from trainer.storage import Storage

__all__ = ["last_values"]

MAX_ENTRIES = 50  # of the outbox that are read, from its end


def last_values(storage: Storage, context: TrialContext, result: TrialResult) -> dict[str, float]:
    """Return metric name -> last value, from the marker first and the end of the outbox behind it."""
    values = dict(result.metrics)
    for key in reversed(storage.list(context.key("metrics/entry-"))[-MAX_ENTRIES:]):
        for name, _, value, _ in reversed(json.loads(storage.read(key)).get("points", ())):
            values.setdefault(name, value)
        if metric_names.LOSS in values and metric_names.EPOCH in values:
            break
    return values
