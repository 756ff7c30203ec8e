"""What came out, for reading: the report of one experiment, and several side by side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import Header, Query, Response

from service.edge.auth import needs
from service.edge.deps import CurrentCaller, OwnedExperiment, Services, ServicesDep, api_router, find_owned
from service.edge.problems import Problem, responses
from service.experiment import TERMINAL
from service.ports import ExperimentRecord, Role
from service.schemas import Comparison, ExperimentView
from service.views.comparison import compare
from service.views.experiments_view import view_experiment
from service.views.pretrain_report import as_html, as_markdown, pretrain_report
from service.views.trials_view import read_trials
from trainer.context import PRETRAIN_TRIAL_ID, experiment_key, trial_key

__all__ = ["router"]

router = api_router("reports")

IDS: Final = r"^[\w-]+(,[\w-]+){0,19}$"
# A report is a page to read: its own styles and pictures, no script, and nothing of this origin.
HTML_POLICY: Final = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_MEDIA_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "json": "application/json",
    "md": "text/markdown; charset=utf-8",
}


@router.get(
    "/experiments/{experiment_id}/report",
    operation_id="getReport",
    summary="Read the report",
    response_class=Response,
    responses={
        200: {
            "description": "The report",
            "content": {
                "text/html": {"schema": {"type": "string"}},
                "application/json": {"schema": {"type": "object"}},
                "text/markdown": {"schema": {"type": "string"}},
            },
        },
        **responses(404, 409),
    },
    openapi_extra=needs(Role.VIEWER),
)
async def report(
    record: OwnedExperiment,
    services: ServicesDep,
    asked: Annotated[
        Literal["html", "json", "md"] | None,
        Query(alias="format", description="Without it: a page for browsers, JSON for others."),
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Return a sweep's report as the sweep wrote it, or a pretraining's as it stands now."""
    format_ = asked or ("html" if "text/html" in accept else "json")
    body = await services.read_blob(experiment_key(record.id, f"report.{format_}"))
    if body is None and record.kind == "sweep":
        raise _missing(record)
    if body is None:
        body = (await _pretrain(record, services, format_)).encode()
    headers = {"Vary": "Accept"}
    if format_ == "html":
        headers["Content-Security-Policy"] = HTML_POLICY
    return Response(body, media_type=_MEDIA_TYPES[format_], headers=headers)


_PICTURE: Final[Mapping[int | str, dict[str, Any]]] = {
    200: {"description": "The picture", "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    **responses(404, 409),
}


@router.get(
    "/experiments/{experiment_id}/report.png",
    operation_id="getReportFigure",
    summary="See the figure of a sweep's report",
    response_class=Response,
    responses={**_PICTURE},
    openapi_extra=needs(Role.VIEWER),
)
async def figure(record: OwnedExperiment, services: ServicesDep) -> Response:
    """Return the figure, in the paper's form where the sweep is a study; Markdown refers to it by this name."""
    return await _picture(record, services, "report.png")


@router.get(
    "/experiments/{experiment_id}/report-histograms.png",
    operation_id="getReportHistograms",
    summary="See the colour histograms of the study colour-shortcut",
    response_class=Response,
    responses={**_PICTURE},
    openapi_extra=needs(Role.VIEWER),
)
async def histograms(record: OwnedExperiment, services: ServicesDep) -> Response:
    """Return the histograms of two crops of two images, with and without colour distortion (paper, Fig. 6)."""
    return await _picture(record, services, "report-histograms.png")


async def _picture(record: ExperimentRecord, services: Services, name: str) -> Response:
    body = await services.read_blob(experiment_key(record.id, name))
    if body is not None:
        return Response(body, media_type="image/png")
    if record.kind == "sweep" and await services.read_blob(experiment_key(record.id, "report.json")) is None:
        raise _missing(record)
    raise Problem(404, "picture_not_found", f"the report of experiment {record.id} has no {name}")


def _missing(record: ExperimentRecord) -> Problem:
    """Return why a sweep has no report, and whether there will be one: it is written before the sweep's end is."""
    if record.state in TERMINAL:
        detail = (
            f"the sweep is {record.state} and left no report; /experiments/{record.id}/trials has what its trials "
            "reached"
        )
        return Problem(404, "report_not_found", detail, state=record.state.value)
    detail = f"the sweep is {record.state}; it writes its report when trials have ended"
    return Problem(409, "report_not_ready", detail, state=record.state.value)


async def _pretrain(record: ExperimentRecord, services: Services, format_: str) -> str:
    view = await view_experiment(record, services)
    trials = await read_trials(record, services) if record.attempt else []
    marker = await services.read_json(trial_key(record.id, PRETRAIN_TRIAL_ID, "complete.json")) or {}
    document = pretrain_report(view, trials[0] if trials else None, paired_p=marker.get("paired_p"))
    if format_ == "json":
        return json.dumps(document)
    return as_markdown(document) if format_ == "md" else as_html(document)


@router.get(
    "/compare",
    operation_id="compareExperiments",
    summary="See experiments side by side",
    responses=responses(404),
    openapi_extra=needs(Role.VIEWER),
)
async def side_by_side(
    services: ServicesDep,
    caller: CurrentCaller,
    ids: Annotated[str, Query(max_length=2048, pattern=IDS, description="ids with commas between, 20 at most")],
) -> Comparison:
    """Return what each reached and the paths at which their specs differ."""
    wanted = list(dict.fromkeys(ids.split(",")))
    records = [await find_owned(id_, services=services, caller=caller) for id_ in wanted]
    views = await asyncio.gather(*(view_experiment(record, services) for record in records))
    metrics = await asyncio.gather(
        *(_best_metrics(record, view, services) for record, view in zip(records, views, strict=True))
    )
    return compare(views, dict(zip(wanted, metrics, strict=True)))


async def _best_metrics(record: ExperimentRecord, view: ExperimentView, services: Services) -> dict[str, float | None]:
    trials = await read_trials(record, services) if record.attempt else []
    chosen = view.best.trial if view.best else None
    return next((trial.metrics for trial in trials if chosen in (None, trial.id)), {})
