"""How a sweep whose trials have all ended came out: its best trial, or why there is none."""

from __future__ import annotations

import math
from typing import Any

from trainer.job import JobEnd
from trainer.trial_table import TrialRow
from tune_spaces.spec import SweepSpec

__all__ = ["best_trial", "end_of"]


def end_of(sweep: SweepSpec, rows: list[TrialRow], *, limit: str | None = None) -> JobEnd:
    """Return how a sweep whose trials have all ended came out; `limit` is what left some out, in words."""
    best = best_trial(sweep, rows)
    reached = {"code": "limit_reached", "message": limit, "retryable": False} if limit else None
    if best is not None:
        return JobEnd(state="succeeded", best=best, reason=reached)
    failed = [row for row in rows if row.state == "failed"]
    if len(failed) == len(rows):
        cause = (failed[0].reason or {}) if failed else {}
        message = (
            f"all {len(rows)} trials failed; {failed[0].id if failed else 'none'}: {cause.get('message', 'unknown')}"
        )
        reason = {"code": "all_trials_failed", "message": message, "retryable": False, "cause": dict(cause)}
    elif reached:
        message = f"{limit}, and none of the others has a finite {sweep.metric} at its end"
        reason = {**reached, "message": message}
    else:
        message = f"no trial that ran to its end has a finite {sweep.metric}"
        reason = {"code": "no_best_trial", "message": message, "retryable": False}
    return JobEnd(state="failed", best=None, reason=reason)


def best_trial(sweep: SweepSpec, rows: list[TrialRow]) -> dict[str, Any] | None:
    """Return the trial that ran to its end with the best last value of the sweep's metric."""
    finished = [row for row in rows if row.state == "succeeded" and math.isfinite(_value(row, sweep.metric))]
    if not finished:
        return None
    sign = 1 if sweep.mode == "max" else -1
    best = max(finished, key=lambda row: sign * _value(row, sweep.metric))  # of equals the first
    return {"trial": best.id, "metric": sweep.metric, "value": _value(best, sweep.metric)}


def _value(row: TrialRow, metric: str) -> float:
    value = row.metrics.get(metric)
    return math.nan if value is None else value
