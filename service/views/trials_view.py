"""The trials of an experiment: the driver's table in storage, with MLflow's last values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from service.edge.deps import Services
from service.experiment import TERMINAL, State, TrialState
from service.ports import ExperimentRecord, TrialRun
from service.schemas import TrialView
from trainer.context import experiment_key

__all__ = ["finite", "read_trials"]

_OF_MLFLOW: Mapping[str, TrialState] = {
    "RUNNING": TrialState.RUNNING,
    "FINISHED": TrialState.SUCCEEDED,
    "FAILED": TrialState.FAILED,
    "KILLED": TrialState.CANCELLED,
}
_UNFINISHED = frozenset({TrialState.PENDING, TrialState.RUNNING})


async def read_trials(
    record: ExperimentRecord, services: Services, *, ask_mlflow: Literal["always", "if_missing", "never"] = "always"
) -> list[TrialView]:
    """Return the trials in the table's order, [] before the first exists.

    Args:
        record: Whose trials.
        services: Where to read.
        ask_mlflow: For the last values; `if_missing` only where the table does not name the runs.

    Raises:
        BlobsUnavailable: If storage does not answer.
        TrackingUnavailable: If MLflow was needed and does not answer.
    """
    table = await services.read_json(experiment_key(record.id, "trials.json")) or {}
    rows: list[dict[str, Any]] = table.get("trials") or []
    runs: dict[str, TrialRun] = {}
    is_missing = not rows or not all(row.get("mlflow_run_id") for row in rows)
    if ask_mlflow == "always" or (is_missing and ask_mlflow == "if_missing"):
        runs = {run.trial_id: run for run in await services.tracking.trials(record.id)}
    if not rows:
        return [_of_run(run, record) for run in sorted(runs.values(), key=lambda run: run.trial_id)]
    return [_of_row(row, runs.get(row["id"]), record) for row in rows]


def _of_row(row: dict[str, Any], run: TrialRun | None, record: ExperimentRecord) -> TrialView:
    metrics = {**(row.get("metrics") or {}), **(run.metrics if run else {})}
    return TrialView(
        id=row["id"],
        state=_ended(TrialState(row["state"]), record),
        params=row.get("params") or {},
        metrics=finite(metrics),
        best=row.get("best"),
        attempt=row.get("attempt"),
        mlflow_run_id=row.get("mlflow_run_id") or (run.mlflow_run_id if run else None),
        reason=row.get("reason"),
    )


def _of_run(run: TrialRun, record: ExperimentRecord) -> TrialView:
    return TrialView(
        id=run.trial_id,
        state=_ended(_OF_MLFLOW.get(run.status, TrialState.RUNNING), record),
        params=dict(run.params),
        metrics=finite(run.metrics),
        attempt=record.attempt,
        mlflow_run_id=run.mlflow_run_id,
    )


def _ended(state: TrialState, record: ExperimentRecord) -> TrialState:
    """Return the state of a trial whose driver may have died before it could write it."""
    if record.state in TERMINAL and state in _UNFINISHED:
        return TrialState.FAILED if record.state is State.FAILED else TrialState.CANCELLED
    if record.state in (State.PAUSED, State.QUEUED) and state is TrialState.RUNNING:
        return TrialState.PENDING
    return state


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return values as JSON has them: NaN and infinities are null."""
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}
