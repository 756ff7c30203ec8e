"""What operators see: JSON log lines with request and experiment ids, and Prometheus metrics.

Labels hold route templates, methods, statuses and states, never a name or id that a client chose.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from opentelemetry import trace
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Scope

from service.experiment import State
from service.ports import Store

__all__ = ["RequestMetrics", "StateMetrics", "add_trace", "configure_logging"]


def configure_logging() -> None:
    """Write every log line, the framework's and uvicorn's too, as one JSON object to stderr."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_trace,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),  # escapes line breaks: a line stays a line
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in ("alembic", "httpx2"):  # one lists its plug-ins at each start, the other each call to Ray and MLflow
        logging.getLogger(name).setLevel(logging.WARNING)


def add_trace(_: object, __: str, line: dict[str, Any]) -> dict[str, Any]:
    """Name the span under way, so that a log line is found from a trace and the other way round."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        line |= {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
    return line


class RequestMetrics:
    """Counts and durations of requests by route."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route", "status")
        self._requests = Counter("simclr_http_requests", "Requests answered", labels, registry=registry)
        self._duration = Histogram(
            "simclr_http_request_duration_seconds", "Time to the end of the answer", labels[:2], registry=registry
        )

    def observe(self, scope: Scope, *, status: int, duration_s: float) -> None:
        """Record one answered request."""
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._duration.labels(method, route).observe(duration_s)


_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


class StateMetrics:
    """How many experiments are in each state, read from the database when scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._experiments = Gauge("simclr_experiments", "Experiments by state", ("state",), registry=registry)

    async def refresh(self, store: Store) -> None:
        """Read the counts. Raises StoreUnavailable."""
        counts = await store.count_by_state()
        for state in State:
            self._experiments.labels(state.value).set(counts.get(state, 0))
