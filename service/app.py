"""The composition root: the only place that builds adapters and puts the app together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Final

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.telemetry import TelemetryConfig
from prometheus_client import CollectorRegistry

from service.background import keep_running
from service.dataset_facts import DatasetFacts
from service.dispatch.dispatcher import Dispatcher
from service.dispatch.dispatcher_metrics import DispatcherMetrics
from service.edge.auth import LoginRequired, ensure_guarded
from service.edge.deps import Services, guard
from service.edge.event_feed import EventFeed
from service.edge.middleware import Edge
from service.edge.observability import RequestMetrics, StateMetrics
from service.edge.openapi import install_openapi
from service.edge.pages import login_page
from service.edge.problems import install_handlers
from service.edge.rate_limit import RateLimit
from service.edge.recent_callers import RecentCallers
from service.errors import SettingsError
from service.housekeeping import Housekeeping
from service.intake.lifecycle_verbs import Deletions
from service.ports import Cluster, Store, Tracking
from service.recent_capacity import RecentCapacity
from service.routes import (
    artifacts,
    catalogue,
    docs,
    encoders,
    events,
    experiments,
    health,
    reports,
    tokens,
    trials,
    ui,
)
from service.settings import Settings
from service.speed_history import SpeedHistory
from service.storage_threads import StorageThreads
from service.views.listing import paging_key
from service.views.live_numbers import LiveNumbersFeed
from trainer.storage import Storage, open_storage

__all__ = ["build", "create_app", "describe_app"]

ROUTERS: Final = (
    experiments.router,
    trials.router,
    events.router,
    encoders.router,
    artifacts.router,
    reports.router,
    catalogue.router,
    tokens.router,
    health.router,
    docs.router,
    ui.router,
)
DESCRIPTION: Final = "SimCLR experiments as a service: pretraining and sweeps on Ray, recorded in MLflow."
STOP_TIMEOUT_S: Final = 10.0
# Spans go where OTEL_EXPORTER_OTLP_ENDPOINT says, nowhere by default. Metrics are Prometheus', and
# what fails is in the service's own log: an exception's words may quote what must not leave it.
TELEMETRY: Final[TelemetryConfig] = {"auto_configure": True, "metrics": False, "logs": False, "operation_spans": False}

log = structlog.get_logger("service.app")

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(*, settings: Settings, store: Store, cluster: Cluster, tracking: Tracking, blobs: Storage) -> FastAPI:
    """Return the app over these adapters; it closes them when it ends.

    Raises:
        SettingsError: If a setting cannot be used, here or (an open address without a token) at the start.
    """
    registry = CollectorRegistry()
    dispatcher = Dispatcher(
        store=store,
        cluster=cluster,
        tracking=tracking,
        blobs=blobs,
        settings=settings,
        # The same after a restart, and another for every other service on this database.
        claim=f"{socket.gethostname()}:{settings.port}",
        metrics=DispatcherMetrics(registry),
    )
    services = Services(
        settings=settings,
        store=store,
        cluster=cluster,
        tracking=tracking,
        blobs=blobs,
        storage_threads=StorageThreads(),
        feed=EventFeed(store),
        speeds=SpeedHistory(store, tracking),
        capacity=RecentCapacity(cluster),
        datasets=DatasetFacts(settings),
        rate_limit=RateLimit(settings.rate_limit),
        recent_callers=RecentCallers(),
        paging_key=paging_key(settings),
        wake_dispatcher=dispatcher.wake,
        registry=registry,
        state_metrics=StateMetrics(registry),
    )
    deletions = Deletions(services)
    app = _routes_only(lifespan=lambda _: _running(services, dispatcher, deletions))
    app.state.services = services
    app.state.deletions = deletions
    app.state.live_numbers = LiveNumbersFeed(services)
    app.add_middleware(Edge, settings=settings, metrics=RequestMetrics(registry))
    return app


def describe_app() -> FastAPI:
    """Return an app that has routes and nothing behind them, for its OpenAPI document."""
    return _routes_only(lifespan=None)


def build(settings: Settings) -> FastAPI:
    """Return the app over real adapters; the embedded database is brought to its newest revision.

    Raises:
        SettingsError: If a setting cannot be used.
        StoreUnavailable: If the database cannot be reached.
    """
    from service.cluster import RayJobs
    from service.code_package import installed_code
    from service.store import SqlStore, migrations
    from service.tracking import MlflowTracking

    if settings.ray_address is None or settings.mlflow_uri is None:
        raise SettingsError("set SIMCLR_RAY_ADDRESS and SIMCLR_MLFLOW_URI, or run `simclr serve`, which starts both")
    if settings.database_url is None:
        migrations.upgrade(settings.database_address)
    else:
        migrations.check(settings.database_address)  # a shared one is upgraded when its operator says so
    return create_app(
        settings=settings,
        store=SqlStore(settings.database_address),
        cluster=RayJobs(
            settings.ray_address,
            token=settings.ray_token,
            code=installed_code() if settings.ships_code else None,
        ),
        tracking=MlflowTracking(settings.mlflow_uri, ui_url=settings.mlflow_ui_url),
        blobs=open_storage(settings.storage_uri),
    )


def _routes_only(*, lifespan: Lifespan | None) -> FastAPI:
    app = FastAPI(
        title="SimCLR service",
        version=version("simclr-service"),
        description=DESCRIPTION,
        lifespan=lifespan,
        telemetry=TELEMETRY,
        openapi_url=None,  # these three are routes of ours, with permissions
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(guard)],
    )
    for router in ROUTERS:
        # Not include_router, which hides them: app.routes stays the flat list that is checked for permissions.
        app.router.routes.extend(router.routes)
    install_handlers(app)
    app.add_exception_handler(LoginRequired, _show_login)
    install_openapi(app)
    return app


async def _show_login(_: Request, __: Exception) -> Response:
    return login_page()


@asynccontextmanager
async def _running(services: Services, dispatcher: Dispatcher, deletions: Deletions) -> AsyncIterator[None]:
    """Run the loops beside the requests; adapters are closed at the end."""
    store, stop = services.store, asyncio.Event()
    try:
        await ensure_guarded(store, services.settings)
        loops = [
            asyncio.create_task(keep_running("dispatcher", dispatcher.run, stop)),
            asyncio.create_task(keep_running("event_feed", services.feed.run, stop)),
            asyncio.create_task(keep_running("speed_history", services.speeds.run, stop)),
            asyncio.create_task(keep_running("housekeeping", Housekeeping(store).run, stop)),
        ]
        try:
            await deletions.take_up()
            yield
        finally:
            stop.set()
            await deletions.close()
            await asyncio.wait(loops, timeout=STOP_TIMEOUT_S)
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
    finally:
        await _close({"store": store, "cluster": services.cluster, "tracking": services.tracking})


async def _close(adapters: Mapping[str, Store | Cluster | Tracking]) -> None:
    """Close each, whatever happens to the others."""
    closings = (adapter.close() for adapter in adapters.values())
    for name, outcome in zip(adapters, await asyncio.gather(*closings, return_exceptions=True), strict=True):
        if isinstance(outcome, BaseException):
            log.error("not_closed", part=name, exc_info=outcome)
