"""What routes ask for: the adapters, the caller, the request's body, an experiment that is theirs.

All are coroutines, those that wait for nothing too: a plain function costs a change to a thread and back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Header, Path, Request
from prometheus_client import CollectorRegistry

from service.dataset_facts import DatasetFacts
from service.edge.auth import PUBLIC, Caller, LoginRequired, authenticate, permission_of, secret_of
from service.edge.event_feed import EventFeed
from service.edge.middleware import MAX_BODY_BYTES, body_too_large
from service.edge.observability import StateMetrics
from service.edge.pages import wants_page
from service.edge.problems import Problem, responses
from service.edge.rate_limit import RateLimit
from service.edge.recent_callers import RecentCallers
from service.edge.strict_json import MalformedJson, parse
from service.errors import BlobsUnavailable, ExperimentNotFound, StoreUnavailable
from service.ports import Cluster, ExperimentRecord, Idempotency, Role, Store, Tracking
from service.recent_capacity import RecentCapacity
from service.schemas import NO_NUL
from service.settings import Settings
from service.speed_history import SpeedHistory
from service.storage_threads import ANSWER_S, StorageThreads
from trainer.storage import BlobMissing, Storage

__all__ = [
    "Body",
    "CurrentCaller",
    "IdempotencyKey",
    "OwnedExperiment",
    "Services",
    "ServicesDep",
    "api_router",
    "find_owned",
    "guard",
    "idempotency_of",
    "read_body",
]

BODY_TIMEOUT_S = 20.0  # for the whole body; a slower sender is dropped
COMMON_ERRORS = (400, 401, 403, 422, 429, 500, 503)


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a route may touch; made once by the composition root."""

    settings: Settings
    store: Store
    cluster: Cluster
    tracking: Tracking
    blobs: Storage
    storage_threads: StorageThreads
    feed: EventFeed
    speeds: SpeedHistory
    capacity: RecentCapacity
    datasets: DatasetFacts
    rate_limit: RateLimit
    recent_callers: RecentCallers
    paging_key: bytes
    wake_dispatcher: Callable[[], None]
    registry: CollectorRegistry
    state_metrics: StateMetrics

    async def read_blob(self, key: str, *, within_s: float = ANSWER_S) -> bytes | None:
        """Return a blob, None where there is none. Raises BlobsUnavailable."""
        try:
            return await self.storage_threads.run(lambda: self.blobs.read(key), within_s=within_s)
        except BlobMissing:
            return None
        except BlobsUnavailable as error:  # whose words are for the log: they may quote a path
            structlog.get_logger("service.blobs").warning("blob_not_read", key=key, error=error.message)
            raise BlobsUnavailable("storage does not answer") from error

    async def read_json(self, key: str) -> dict[str, Any] | None:
        """Return a JSON blob, None where there is none or it is no object. Raises BlobsUnavailable."""
        data = await self.read_blob(key)
        try:
            document = json.loads(data) if data is not None else None
        except ValueError:
            structlog.get_logger("service.blobs").warning("blob_unreadable", key=key)
            return None
        return document if isinstance(document, dict) else None


async def services_of(request: Request) -> Services:
    """Return the services of the app that got this request."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]


async def guard(request: Request, services: ServicesDep) -> Caller | None:
    """Let a request through if its caller may use its route; every route of the app depends on this.

    Raises:
        Problem: 401, 403 (also for a route that declares no permission) or 429.
        LoginRequired: For a 401 that a browser can answer.
    """
    permission = permission_of(request.scope["route"])
    if permission is None:
        raise Problem(403, "permission_undeclared", "this route declares no permission, so nobody may use it")
    if permission == PUBLIC:
        return None
    try:
        caller = await _authenticated(request, services, needed=Role(permission))
    except Problem as problem:
        if wants_page(request):
            raise LoginRequired from problem
        raise
    address = request.client.host if request.client else "unknown"
    services.rate_limit.spend(caller.token_id or address)
    if not caller.may(Role(permission)):
        raise Problem(403, "role_insufficient", f"role {caller.role} is not enough; this needs {permission}")
    return caller


async def _authenticated(request: Request, services: Services, *, needed: Role) -> Caller:
    """Return who calls; for what a viewer may, also from memory. Raises as `authenticate` does."""
    secret, recent = secret_of(request), services.recent_callers
    try:
        caller = await authenticate(request, store=services.store, settings=services.settings)
    except Problem:
        recent.forget(secret)
        raise
    except StoreUnavailable:
        if (known := recent.recall(secret)) is None or not known.may(needed):
            raise
        return known
    recent.remember(secret, caller)
    return caller


async def _caller(caller: Annotated[Caller | None, Depends(guard)]) -> Caller:
    if caller is None:
        raise Problem(401, "unauthorized", "send a token")
    return caller


CurrentCaller = Annotated[Caller, Depends(_caller)]


def api_router(tag: str) -> APIRouter:
    """Return a router whose routes are guarded and declare the errors that any route may give."""
    return APIRouter(tags=[tag], dependencies=[Depends(guard)], responses=responses(*COMMON_ERRORS))


# --- the body -------------------------------------------------------------------------------------


async def read_body(request: Request) -> bytes:
    """Return the body, read within its limits. Raises Problem 408 and 413."""
    chunks = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                chunks += chunk
                if len(chunks) > MAX_BODY_BYTES:
                    raise body_too_large()
    except TimeoutError as error:
        raise Problem(408, "body_too_slow", f"a body must arrive within {BODY_TIMEOUT_S:g} s") from error
    return bytes(chunks)


async def _json_object(request: Request) -> dict[str, Any]:
    try:
        document = parse(await read_body(request))
    except MalformedJson as error:
        raise Problem(400, "body_malformed", str(error)) from error
    if not isinstance(document, dict):
        raise Problem(422, "body_invalid", f"send a JSON object, not a {type(document).__name__}")
    return document


Body = Annotated[dict[str, Any], Depends(_json_object)]


# --- idempotency ----------------------------------------------------------------------------------

_KEY = re.compile(r"[\x20-\x7e]{1,255}")


async def _idempotency_key(
    idempotency_key: Annotated[
        str | None,
        Header(
            description="1-255 printable ASCII characters; a repeat returns the first answer's experiment",
            json_schema_extra={"pattern": f"^{_KEY.pattern}$"},
        ),
    ] = None,
) -> str | None:
    if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
        raise Problem(400, "idempotency_key_invalid", "Idempotency-Key: 1 to 255 printable ASCII characters")
    return idempotency_key


IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]


def idempotency_of(key: str | None, *, caller: Caller, route: str, body: dict[str, Any]) -> Idempotency | None:
    """Return the record of a key; bodies that differ in spacing or key order are the same body."""
    if key is None:
        return None
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return Idempotency(owner=caller.owner, route=route, key=key, body_sha256=hashlib.sha256(canonical).hexdigest())


# --- experiments ----------------------------------------------------------------------------------


async def _owned(
    experiment_id: Annotated[str, Path(max_length=64, pattern=NO_NUL)], services: ServicesDep, caller: CurrentCaller
) -> ExperimentRecord:
    structlog.contextvars.bind_contextvars(experiment_id=experiment_id)
    return await find_owned(experiment_id, services=services, caller=caller)


async def find_owned(experiment_id: str, *, services: Services, caller: Caller) -> ExperimentRecord:
    """Return an experiment of the caller's; another's does not exist for them. Raises ExperimentNotFound."""
    missing = ExperimentNotFound(f"no experiment {experiment_id[:64]!r}")
    try:
        record = await services.store.get(experiment_id)
    except ExperimentNotFound as error:
        raise missing from error
    if caller.sees not in (None, record.owner):
        raise missing
    return record


OwnedExperiment = Annotated[ExperimentRecord, Depends(_owned)]
