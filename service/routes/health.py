"""How the service is: for probes, scrapers and people who report a fault."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Final

import structlog
from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.edge.auth import PUBLIC, needs
from service.edge.deps import Services, ServicesDep, api_router
from service.edge.problems import Problem
from service.errors import StoreUnavailable
from service.ports import Role
from service.schemas import ComponentStatus, Readiness, VersionView

__all__ = ["router"]

router = api_router("health")

PING_TIMEOUT_S: Final = 3.0
API_VERSION: Final = "1"

log = structlog.get_logger("service.health")


@router.get("/livez", operation_id="live", summary="The process answers", openapi_extra=needs(PUBLIC))
async def live() -> dict[str, str]:
    """Return at once, whatever the service rests on."""
    return {"status": "alive"}


@router.get("/readyz", operation_id="ready", summary="Database, Ray and MLflow answer", openapi_extra=needs(PUBLIC))
async def ready(services: ServicesDep) -> Readiness:
    """Return 200 when all the service rests on answers, and 503 that names what does not."""
    components = await _components(services)
    silent = [component.name for component in components if not component.is_ready]
    if silent:
        raise Problem(
            503,
            "not_ready",
            f"{', '.join(silent)} {'do' if len(silent) > 1 else 'does'} not answer",
        )
    return Readiness(status="ready", components=components)


async def _components(services: Services) -> list[ComponentStatus]:
    pings = {"database": services.store.ping, "ray": services.cluster.ping, "mlflow": services.tracking.ping}
    answers = await asyncio.gather(*(_answers(name, ping) for name, ping in pings.items()))
    return [
        ComponentStatus.model_validate({"name": name, "is_ready": is_ready})
        for name, is_ready in zip(pings, answers, strict=True)
    ]


async def _answers(name: str, ping: Callable[[], Awaitable[None]]) -> bool:
    try:
        async with asyncio.timeout(PING_TIMEOUT_S):
            await ping()
    except Exception as error:  # noqa: BLE001 - whatever a ping raises, the answer is that it does not answer
        log.warning("component_silent", component=name, error=repr(error))
        return False
    return True


@router.get(
    "/metrics",
    operation_id="scrape",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    openapi_extra=needs(Role.VIEWER),
)
async def metrics(services: ServicesDep) -> Response:
    """Return the metrics in Prometheus' text format."""
    try:
        await services.state_metrics.refresh(services.store)
    except StoreUnavailable:
        log.warning("states_not_counted")  # request counts are worth scraping all the same
    return Response(generate_latest(services.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/version", operation_id="version", summary="Versions", openapi_extra=needs(Role.VIEWER))
async def versions() -> VersionView:
    """Return which versions answer."""
    return VersionView(service=version("simclr-service"), api=API_VERSION, python=platform.python_version())
