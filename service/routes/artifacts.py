"""The files of a trial's MLflow run, handed on as bytes that no browser will run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Query, Response
from fastapi.responses import StreamingResponse

from service.edge.artifact_path import checked_artifact_path
from service.edge.auth import needs
from service.edge.deps import OwnedExperiment, Services, ServicesDep, api_router
from service.edge.problems import responses
from service.errors import ArtifactNotFound
from service.ports import ExperimentRecord, Role
from service.routes.trials import trial_of
from service.schemas import ArtifactView, Items
from service.views.trials_view import read_trials

__all__ = ["router"]

router = api_router("artifacts")

BINARY = "application/octet-stream"
SANDBOX = "sandbox; default-src 'none'"
TrialId = Annotated[str | None, Query(max_length=64, description="the first trial when left out")]


@router.get(
    "/experiments/{experiment_id}/artifacts",
    operation_id="listArtifacts",
    summary="List a folder of a trial's artifacts",
    responses=responses(404),
    openapi_extra=needs(Role.VIEWER),
)
async def list_(
    record: OwnedExperiment,
    services: ServicesDep,
    trial: TrialId = None,
    path: Annotated[str, Query(max_length=1024, description="a folder; the root when left out")] = "",
) -> Items[ArtifactView]:
    """Return the files and folders directly below `path`."""
    run_id = await _run_id(record, services, trial)
    if run_id is None:
        return Items(items=[])
    found = await services.tracking.artifacts(run_id, checked_artifact_path(path) if path else "")
    return Items(items=[ArtifactView.model_validate(item) for item in found])


@router.get(
    "/experiments/{experiment_id}/artifacts/{path:path}",
    operation_id="downloadArtifact",
    summary="Download one artifact",
    response_class=Response,
    responses={
        200: {"description": "Its bytes", "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}},
        **responses(404),
    },
    openapi_extra=needs(Role.VIEWER),
)
async def download(record: OwnedExperiment, services: ServicesDep, path: str, trial: TrialId = None) -> Response:
    """Return an artifact as an attachment, whatever its type."""
    checked = checked_artifact_path(path)
    run_id = await _run_id(record, services, trial)
    if run_id is None:
        raise ArtifactNotFound(f"experiment {record.id} has no artifacts yet")
    chunks = services.tracking.open_artifact(run_id, checked)
    first = await anext(chunks, b"")  # what fails, fails before the answer has begun
    name = checked.rpartition("/")[2].encode("ascii", "replace").decode().replace('"', "'").replace("?", "_")
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Security-Policy": SANDBOX}
    return StreamingResponse(_joined(first, chunks), media_type=BINARY, headers=headers)


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


async def _run_id(record: ExperimentRecord, services: Services, trial_id: str | None) -> str | None:
    if trial_id is not None:
        return (await trial_of(record, services, trial_id)).mlflow_run_id
    trials = await read_trials(record, services, ask_mlflow="if_missing") if record.attempt else []
    return trials[0].mlflow_run_id if trials else None
