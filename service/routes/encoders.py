"""What experiments produced: encoder bundles."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator

from fastapi import Response
from fastapi.responses import StreamingResponse

from service.edge.auth import needs
from service.edge.deps import CurrentCaller, OwnedExperiment, Services, ServicesDep, api_router
from service.edge.problems import Problem, responses
from service.experiment import State
from service.ports import ExperimentRecord, Role
from service.schemas import EncoderView, Items
from service.views.listing import DEFAULT_PAGE_SIZE, PageSize, PageToken, page_of_states
from trainer.context import PRETRAIN_TRIAL_ID, bundle_key, experiment_key, trial_key

__all__ = ["router"]

router = api_router("encoders")

ZIP = "application/zip"
BUNDLE_S = 120.0  # the largest encoders are gigabytes
PART_BYTES = 64 * 1024  # each is waited for as long as a client that takes nothing


@router.get(
    "/experiments/{experiment_id}/encoder",
    operation_id="downloadEncoder",
    summary="Download the encoder bundle of the best trial",
    response_class=Response,
    responses={
        200: {"description": "The bundle", "content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}},
        **responses(404, 409),
    },
    openapi_extra=needs(Role.VIEWER),
)
async def download(record: OwnedExperiment, services: ServicesDep) -> Response:
    """Return the bundle as a zip with its sha256 in Repr-Digest (RFC 9530)."""
    marker = await services.read_json(experiment_key(record.id, "complete.json")) or {}
    trial = _trial_of(marker, record)
    bundle = await _bundle_of(trial, record, services) if trial else None
    if bundle is None:
        detail = f"the experiment is {record.state}; there is an encoder once a trial has succeeded"
        raise Problem(409, "encoder_not_ready", detail, state=record.state.value)
    sha256 = await asyncio.to_thread(hashlib.sha256, bundle)
    digest = base64.b64encode(sha256.digest()).decode()
    headers = {
        "Content-Disposition": f'attachment; filename="{record.id}-{trial}-encoder.zip"',
        "Content-Length": str(len(bundle)),
        "Repr-Digest": f"sha-256=:{digest}:",
    }
    return StreamingResponse(_in_parts(bundle), media_type=ZIP, headers=headers)


async def _in_parts(bundle: bytes) -> AsyncIterator[bytes]:
    """Yield parts that take no time to copy; as a whole it would be copied several times on its way."""
    for start in range(0, len(bundle), PART_BYTES):
        yield bundle[start : start + PART_BYTES]
        await asyncio.sleep(0)  # a client that reads as fast as it is sent never makes it wait


async def _bundle_of(trial: str, record: ExperimentRecord, services: Services) -> bytes | None:
    marker = await services.read_json(trial_key(record.id, trial, "complete.json")) or {}
    return await services.read_blob(bundle_key(record.id, trial, marker), within_s=BUNDLE_S)


def _trial_of(marker: dict[str, object], record: ExperimentRecord) -> str | None:
    best = marker.get("best")
    if isinstance(best, dict) and isinstance(best.get("trial"), str):
        return str(best["trial"])
    is_alone = record.kind == "pretrain" and marker.get("state") == "succeeded"
    return PRETRAIN_TRIAL_ID if is_alone else None


@router.get(
    "/encoders",
    operation_id="listEncoders",
    summary="List the encoders that can be downloaded, newest experiment first",
    openapi_extra=needs(Role.VIEWER),
)
async def list_(
    services: ServicesDep, caller: CurrentCaller, page_size: PageSize = DEFAULT_PAGE_SIZE, page_token: PageToken = ""
) -> Items[EncoderView]:
    """Return the best encoder of each experiment that succeeded."""
    records, token = await page_of_states(
        (State.SUCCEEDED,), services, caller=caller, page_size=page_size, page_token=page_token
    )
    views = [await _view(record, services) for record in records]
    return Items(items=[view for view in views if view is not None], next_page_token=token)


async def _view(record: ExperimentRecord, services: Services) -> EncoderView | None:
    marker = await services.read_json(experiment_key(record.id, "complete.json")) or {}
    trial = _trial_of(marker, record)
    if trial is None:
        return None
    best = marker.get("best") or {}
    return EncoderView(
        experiment_id=record.id,
        experiment_name=record.name,
        trial=trial,
        metric=best.get("metric"),
        value=best.get("value"),
        finished_at=record.finished_at,
        href=f"/experiments/{record.id}/encoder",
    )
