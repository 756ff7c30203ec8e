"""Trials of an experiment, and their metrics."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Path, Query, Response

from service.edge.auth import needs
from service.edge.deps import OwnedExperiment, Services, ServicesDep, api_router
from service.edge.problems import Problem, responses
from service.intake.submission import refuse
from service.ports import ExperimentRecord, Role
from service.schemas import FieldProblem, Items, MetricsView, TrialView
from service.views.curves import metrics_json
from service.views.listing import DEFAULT_PAGE_SIZE, PageSize, PageToken, page_of_sequence
from service.views.trials_view import read_trials

__all__ = ["router", "trial_of"]

router = api_router("trials")

MAX_KEYS = 64


@router.get(
    "/experiments/{experiment_id}/trials",
    operation_id="listTrials",
    summary="List the trials of an experiment",
    responses=responses(404),
    openapi_extra=needs(Role.VIEWER),
)
async def list_(
    record: OwnedExperiment, services: ServicesDep, page_size: PageSize = DEFAULT_PAGE_SIZE, page_token: PageToken = ""
) -> Items[TrialView]:
    """Return trials in the order they were made, with the last value of each metric."""
    trials = await read_trials(record, services) if record.attempt else []
    items, token = page_of_sequence(
        trials, name=f"trials of {record.id}", page_size=page_size, page_token=page_token, key=services.paging_key
    )
    return Items(items=items, next_page_token=token)


@router.get(
    "/experiments/{experiment_id}/trials/{trial_id}",
    operation_id="getTrial",
    summary="Show one trial",
    responses=responses(404),
    openapi_extra=needs(Role.VIEWER),
)
async def show(
    record: OwnedExperiment, services: ServicesDep, trial_id: Annotated[str, Path(max_length=64)]
) -> TrialView:
    """Return one trial."""
    return await trial_of(record, services, trial_id)


async def trial_of(record: ExperimentRecord, services: Services, trial_id: str) -> TrialView:
    """Return a trial of this experiment. Raises Problem 404."""
    trials = await read_trials(record, services) if record.attempt else []
    for trial in trials:
        if trial.id == trial_id:
            return trial
    raise Problem(404, "trial_not_found", f"experiment {record.id} has no trial {trial_id!r}")


@router.get(
    "/experiments/{experiment_id}/metrics",
    operation_id="getMetrics",
    summary="Read the curves of one trial",
    response_model=MetricsView,
    responses=responses(404),
    openapi_extra=needs(Role.VIEWER),
)
async def metrics(
    record: OwnedExperiment,
    services: ServicesDep,
    keys: Annotated[str | None, Query(max_length=4096, description="comma-separated names; all when left out")] = None,
    trial: Annotated[str | None, Query(max_length=64, description="needed for a sweep")] = None,
    max_points: Annotated[int | None, Query(ge=2, le=1_000_000, description="thin each curve to so many")] = None,
) -> Response:
    """Return every point of each metric, by global step from 1; an unknown name has an empty list."""
    wanted = _keys(keys)
    found = await _chosen_trial(record, services, trial)
    if found is None or found.mlflow_run_id is None:
        return _json(metrics_json(None, {}, max_points=None))
    series = await services.tracking.metrics(found.mlflow_run_id, wanted or sorted(found.metrics))
    return _json(await asyncio.to_thread(metrics_json, found.id, series, max_points=max_points))


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _keys(text: str | None) -> list[str]:
    keys = list(dict.fromkeys(key.strip() for key in (text or "").split(",") if key.strip()))
    if len(keys) > MAX_KEYS:
        detail = f"keys: {len(keys)} names; ask for at most {MAX_KEYS} at once"
        refuse([FieldProblem(pointer="/query/keys", code="too_many", detail=detail, allowed=f"<= {MAX_KEYS}")])
    return keys


async def _chosen_trial(record: ExperimentRecord, services: Services, trial_id: str | None) -> TrialView | None:
    """Return the trial that is named, or the only one; None before there is any."""
    if trial_id is not None:
        return await trial_of(record, services, trial_id)
    if record.kind == "sweep":
        detail = "trial: a sweep has many trials; name one of /trials"
        refuse([FieldProblem(pointer="/query/trial", code="missing", detail=detail, allowed="a trial's id")])
    trials = await read_trials(record, services) if record.attempt else []
    return trials[0] if trials else None
