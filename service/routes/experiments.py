"""Experiments: submit, look, change, delete, steer, and start new ones from old ones."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query, Request, Response
from pydantic import BaseModel

from service.edge.auth import needs
from service.edge.deps import Body, CurrentCaller, IdempotencyKey, OwnedExperiment, Services, ServicesDep, api_router
from service.edge.examples import PRETRAIN_EXAMPLE, SWEEP_EXAMPLE
from service.edge.preconditions import IfMatch, expected_version
from service.edge.problems import Problem, responses
from service.experiment import Verb
from service.intake.creation import create_experiment, judge
from service.intake.descendants import (
    body_of_clone,
    body_of_continuation,
    parent_of_clone,
    parent_of_continuation,
    placed_in_clone,
    placed_in_continuation,
)
from service.intake.lifecycle_verbs import Deletions, obey
from service.intake.submission import refuse
from service.intake.validation import check_fields
from service.ports import ExperimentRecord, Role
from service.schemas import (
    CloneRequest,
    ContinueRequest,
    ExperimentPatch,
    ExperimentView,
    Items,
    PretrainSubmission,
    SweepSubmission,
    ValidationView,
)
from service.views.experiments_view import etag_of, view_experiment, view_experiments
from service.views.listing import ExperimentFilter, page_of_experiments

__all__ = ["router"]

router = api_router("experiments")


async def _answer(
    record: ExperimentRecord, services: Services, *, status: int = 200, is_replay: bool = False
) -> Response:
    headers = {"ETag": etag_of(record), "Location": f"/experiments/{record.id}"}
    if is_replay:
        headers["Idempotency-Replayed"] = "true"
    return _json(await view_experiment(record, services), status=status, headers=headers)


def _json(view: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response of a document that is whole: the framework would check it once more."""
    return Response(view.model_dump_json(), status_code=status, headers=headers, media_type="application/json")


def _request_body(*models: type, **examples: Any) -> dict[str, Any]:
    """Return the OpenAPI description of a body that is parsed by hand, under stricter rules than FastAPI's."""
    refs = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    schema = refs[0] if len(refs) == 1 else {"oneOf": refs}
    content: dict[str, Any] = {"schema": schema}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


_CREATED: dict[int | str, dict[str, Any]] = {
    200: {"model": ExperimentView, "description": "A replay: the experiment that this Idempotency-Key made before"},
    202: {"model": ExperimentView, "description": "Stored; it starts when the cluster has room"},
    **responses(408, 413, 415),
}


@router.post(
    "/experiments",
    operation_id="createExperiment",
    summary="Submit an experiment",
    status_code=202,
    responses={
        **_CREATED,
        200: {
            "description": "A replay, or with `validate_only` what would run",
            "model": ExperimentView | ValidationView,
        },
    },
    openapi_extra=needs(
        Role.SUBMITTER,
        **_request_body(PretrainSubmission, SweepSubmission, pretrain=PRETRAIN_EXAMPLE, sweep=SWEEP_EXAMPLE),
    ),
)
async def create(
    body: Body,
    services: ServicesDep,
    caller: CurrentCaller,
    key: IdempotencyKey,
    *,
    validate_only: Annotated[bool, Query(description="check and plan; store nothing")] = False,
) -> Response:
    """Check a spec in full, store it and queue it; every error is reported at once."""
    if validate_only:
        submission = await judge(body, services)
        view = ValidationView(
            name=submission.name,
            kind=submission.kind,
            spec=submission.spec,
            spec_digest=submission.spec_digest,
            plan=submission.plan,
        )
        return _json(view)
    record, is_replay = await create_experiment(body, services, caller=caller, key=key, route="POST /experiments")
    return await _answer(record, services, status=200 if is_replay else 202, is_replay=is_replay)


@router.get(
    "/experiments",
    operation_id="listExperiments",
    summary="List experiments, newest first",
    response_model=Items[ExperimentView],
    openapi_extra=needs(Role.VIEWER),
)
async def list_(filters: ExperimentFilter, services: ServicesDep, caller: CurrentCaller) -> Response:
    """Return one page of the experiments that match every filter."""
    records, next_page_token = await page_of_experiments(filters, services, caller=caller)
    return _json(Items(items=await view_experiments(records, services), next_page_token=next_page_token))


@router.get(
    "/experiments/{experiment_id}",
    operation_id="getExperiment",
    summary="Show an experiment",
    response_model=ExperimentView,
    responses=responses(404),
    openapi_extra=needs(Role.VIEWER),
)
async def show(record: OwnedExperiment, services: ServicesDep) -> Response:
    """Return an experiment with its live progress; the ETag follows its stored fields only."""
    return await _answer(record, services)


@router.patch(
    "/experiments/{experiment_id}",
    operation_id="updateExperiment",
    summary="Change labels or priority",
    response_model=ExperimentView,
    responses=responses(404, 408, 412, 413, 415, 428),
    openapi_extra=needs(Role.SUBMITTER, **_request_body(ExperimentPatch)),
)
async def update(record: OwnedExperiment, body: Body, services: ServicesDep, if_match: IfMatch = None) -> Response:
    """Replace labels or priority of the version that If-Match names."""
    expected = expected_version(if_match, current=record.version)
    patch, problems = check_fields(ExperimentPatch, body)
    if patch is None or problems:
        refuse(problems)
    changed = await services.store.update(
        record.id, expected_version=expected, labels=patch.labels, priority=patch.priority
    )
    return await _answer(changed, services)


@router.delete(
    "/experiments/{experiment_id}",
    operation_id="deleteExperiment",
    summary="Delete an experiment and what it stored",
    status_code=204,
    responses={202: {"description": "It is being cancelled and is deleted when it has ended"}, **responses(404, 409)},
    openapi_extra=needs(Role.SUBMITTER),
)
async def delete(
    request: Request,
    record: OwnedExperiment,
    *,
    force: Annotated[bool, Query(description="cancel it first if it is active")] = False,
) -> Response:
    """Delete an experiment that is no longer active; its MLflow runs stay."""
    deletions: Deletions = request.app.state.deletions
    is_gone = await deletions.delete(record, is_forced=force)
    return Response(status_code=204 if is_gone else 202)


def _verb_route(verb: Verb, summary: str) -> None:
    @router.post(
        f"/experiments/{{experiment_id}}/{verb}",
        operation_id=f"{verb}Experiment",
        summary=summary,
        response_model=ExperimentView,
        responses=responses(404, 409),
        openapi_extra=needs(Role.SUBMITTER),
        name=f"{verb}_experiment",
    )
    async def steer(record: OwnedExperiment, services: ServicesDep) -> Response:
        """Move the experiment; repeating a verb that was obeyed is no error."""
        return await _answer(await obey(verb, record, services), services)


_verb_route(Verb.CANCEL, "Stop for good")
_verb_route(Verb.PAUSE, "Stop after a checkpoint, to resume later")
_verb_route(Verb.RESUME, "Queue a paused experiment again")


@router.post(
    "/experiments/{experiment_id}/clone",
    operation_id="cloneExperiment",
    summary="Start a new experiment like this one",
    status_code=202,
    response_model=ExperimentView,
    responses={**_CREATED, **responses(404)},
    openapi_extra=needs(Role.SUBMITTER, **_request_body(CloneRequest, colder={"overrides": {"loss.temperature": 0.1}})),
)
async def clone(
    record: OwnedExperiment, body: Body, services: ServicesDep, caller: CurrentCaller, key: IdempotencyKey
) -> Response:
    """Create an experiment from this one's request with values replaced; it starts from scratch."""
    request, problems = check_fields(CloneRequest, body)
    if request is None or problems:
        refuse(problems)
    try:
        child, is_replay = await create_experiment(
            body,
            services,
            caller=caller,
            key=key,
            route=f"POST /experiments/{record.id}/clone",
            whole=lambda: asyncio.to_thread(body_of_clone, record, request),
            parent=parent_of_clone(record),
        )
    except Problem as problem:
        raise placed_in_clone(problem, request) from problem
    return await _answer(child, services, status=200 if is_replay else 202, is_replay=is_replay)


@router.post(
    "/experiments/{experiment_id}/continue",
    operation_id="continueExperiment",
    summary="Train further from this one's last checkpoint",
    status_code=202,
    response_model=ExperimentView,
    responses={**_CREATED, **responses(404, 409)},
    openapi_extra=needs(Role.SUBMITTER, **_request_body(ContinueRequest, longer={"epochs": 200})),
)
async def continue_(
    record: OwnedExperiment, body: Body, services: ServicesDep, caller: CurrentCaller, key: IdempotencyKey
) -> Response:
    """Create an experiment that goes on where this one stopped, to more epochs or more trials in all."""
    request, problems = check_fields(ContinueRequest, body)
    if request is None or problems:
        refuse(problems)
    try:
        child, is_replay = await create_experiment(
            body,
            services,
            caller=caller,
            key=key,
            route=f"POST /experiments/{record.id}/continue",
            whole=lambda: services.storage_threads.run(
                lambda: body_of_continuation(record, request, blobs=services.blobs)
            ),
            parent=parent_of_continuation(record),
        )
    except Problem as problem:
        raise placed_in_continuation(problem, record) from problem
    return await _answer(child, services, status=200 if is_replay else 202, is_replay=is_replay)
