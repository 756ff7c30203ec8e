"""The document of an experiment, put together from those who know: database, storage, MLflow.

MLflow's silence never hides an experiment: numbers that only it knows become null and a condition
says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from service.edge.deps import Services
from service.errors import BlobsUnavailable, TrackingUnavailable
from service.experiment import TERMINAL, State, TrialState, submission_id
from service.ports import ExperimentRecord, TrialRun
from service.public_address import without_userinfo
from service.schemas import BestTrial, Condition, ExperimentView, Progress, TrialView
from service.views.trials_view import read_trials
from trainer import metric_names
from trainer.context import experiment_key

__all__ = ["DONE_TRIALS", "best_trial", "etag_of", "view_experiment", "view_experiments"]

DONE_TRIALS = frozenset({TrialState.SUCCEEDED, TrialState.STOPPED_EARLY, TrialState.FAILED, TrialState.CANCELLED})


def etag_of(record: ExperimentRecord) -> str:
    """Return the strong ETag: it follows the stored fields, never the progress."""
    return f'"{record.version}"'


async def view_experiments(records: Sequence[ExperimentRecord], services: Services) -> list[ExperimentView]:
    """Return the documents of a page, without the numbers that would take one call to MLflow each."""
    return list(await asyncio.gather(*(_view(record, services, is_detailed=False) for record in records)))


async def view_experiment(record: ExperimentRecord, services: Services) -> ExperimentView:
    """Return one document, with live numbers."""
    return await _view(record, services, is_detailed=True)


async def _view(record: ExperimentRecord, services: Services, *, is_detailed: bool) -> ExperimentView:
    conditions = list(record.conditions)
    trials: list[TrialView] = []
    run: TrialRun | None = None
    best: BestTrial | None = None
    if record.attempt:  # before its first start nobody else knows anything of it
        try:
            trials = await read_trials(record, services, ask_mlflow="if_missing" if is_detailed else "never")
            best = await best_trial(record, services, trials)
            if is_detailed and record.kind == "pretrain" and trials and trials[0].mlflow_run_id:
                # Its last values, which is one look; its curves may have a hundred thousand points.
                run_id, runs = trials[0].mlflow_run_id, await services.tracking.trials(record.id)
                run = next((each for each in runs if each.mlflow_run_id == run_id), None)
        except (TrackingUnavailable, BlobsUnavailable) as error:
            conditions.append(_unavailable(error))
    return ExperimentView(
        **{name: getattr(record, name) for name in _STORED},
        conditions=[Condition.model_validate(condition) for condition in conditions],
        progress=_progress(record, trials, run),
        best=best,
        links=_links(record, services, trials),
    )


_STORED = tuple(name for name in ExperimentView.model_fields if name not in ("conditions", "progress", "best", "links"))


def _unavailable(error: TrackingUnavailable | BlobsUnavailable) -> dict[str, Any]:
    what = "MLflow" if isinstance(error, TrackingUnavailable) else "storage"
    return {
        "type": error.code,
        "status": "true",
        "message": f"{what} does not answer; progress is shown without its numbers",
        "at": datetime.now(UTC).isoformat(),
    }


async def best_trial(record: ExperimentRecord, services: Services, trials: Sequence[TrialView]) -> BestTrial | None:
    """Return the best trial: the completion marker's word, before it the best so far. Raises BlobsUnavailable."""
    if record.state in TERMINAL:
        marker = await services.read_json(experiment_key(record.id, "complete.json")) or {}
        if (best := _as_best(marker.get("best"))) is not None:
            return best
    candidates = [best for trial in trials if (best := _as_best({"trial": trial.id, **(trial.best or {})}))]
    if not candidates:
        return None
    return (min if record.spec.get("mode") == "min" else max)(candidates, key=lambda best: best.value)


def _as_best(document: Any) -> BestTrial | None:
    if not isinstance(document, dict) or document.get("value") is None or not document.get("metric"):
        return None
    return BestTrial(trial=document["trial"], metric=document["metric"], value=document["value"])


def _progress(record: ExperimentRecord, trials: Sequence[TrialView], run: TrialRun | None) -> Progress:
    trials_total = max(int(record.plan.get("trials") or 1), len(trials))
    trials_done = sum(trial.state in DONE_TRIALS for trial in trials)
    if record.kind == "sweep":
        return Progress(trials_done=trials_done, trials_total=trials_total, steps=record.plan.get("steps"))
    steps, epochs = record.plan.get("steps"), record.spec.get("epochs")
    step = run.steps.get(metric_names.LOSS) if run else None
    epoch = run.metrics.get(metric_names.EPOCH) if run else None
    if record.state is State.SUCCEEDED:
        step, epoch, trials_done = step or steps, epoch or epochs, 1
    rate = run.metrics.get(metric_names.IMAGES_PER_SECOND) if run else None
    is_running = record.state is State.RUNNING
    eta_s = (steps - step) * record.spec["batch_size"] / rate if is_running and steps and step and rate else None
    return Progress(
        trials_done=trials_done,
        trials_total=trials_total,
        epoch=epoch,
        epochs=epochs,
        step=step,
        steps=steps,
        images_per_second=rate,
        eta_s=eta_s,
    )


def _links(record: ExperimentRecord, services: Services, trials: Sequence[TrialView]) -> dict[str, str | None]:
    here = f"/experiments/{record.id}"
    run_id = trials[0].mlflow_run_id if len(trials) == 1 else None
    return {
        "self": here,
        "events": f"{here}/events",
        "trials": f"{here}/trials",
        "metrics": f"{here}/metrics",
        "encoder": f"{here}/encoder" if record.state is State.SUCCEEDED else None,
        "report": f"{here}/report",
        "mlflow": services.tracking.run_url(record.id, run_id),
        "ray_dashboard": _dashboard(record, services),
    }


def _dashboard(record: ExperimentRecord, services: Services) -> str | None:
    found = services.settings.ray_ui_url or services.settings.ray_address
    if found is None:
        return None
    address = without_userinfo(found)
    if not record.attempt:
        return address
    return f"{address.rstrip('/')}/#/jobs/{submission_id(record.id, record.attempt)}"
