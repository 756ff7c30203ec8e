"""What operators see of the dispatcher; how many experiments are in each state is in `observability`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.dispatch.step_report import StepReport
from service.experiment import TERMINAL, State
from service.ports import ExperimentRecord

__all__ = ["DispatcherMetrics"]

_WAIT_BUCKETS_S: Final = (0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)


class DispatcherMetrics:
    """Queue waits, attempts, endings, failures to look after an experiment, and how far behind the loop is."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queue_wait = Histogram(
            "simclr_queue_wait_seconds", "From submit to the first start", buckets=_WAIT_BUCKETS_S, registry=registry
        )
        self._attempts = Counter("simclr_attempts", "Attempts begun", ("cause",), registry=registry)
        self._settled = Counter("simclr_settled", "Experiments that ended", ("state",), registry=registry)
        self._errors = Counter("simclr_dispatcher_errors", "Experiments that a step failed at", registry=registry)
        self._outages = Counter("simclr_outages", "Steps in which a part did not answer", ("code",), registry=registry)
        self._step = Histogram("simclr_dispatcher_step_seconds", "Duration of a step", registry=registry)
        self._active = Gauge("simclr_dispatcher_active", "Experiments this dispatcher looks after", registry=registry)
        lag = Gauge("simclr_dispatcher_lag_seconds", "Time since the last whole step", registry=registry)
        self._stepped_at_s = time.monotonic()
        lag.set_function(lambda: time.monotonic() - self._stepped_at_s)

    def observe(
        self, report: StepReport, records: Sequence[ExperimentRecord], *, now: datetime, duration_s: float
    ) -> None:
        """Record one whole step over `records`, as they were before it."""
        self._stepped_at_s = time.monotonic()
        self._active.set(report.num_active)
        self._step.observe(duration_s)
        self._errors.inc(len(report.errors))
        for code in report.outages:
            self.count_outage(code)
        new_at = {record.id: record.created_at for record in records if record.attempt == 0}
        for move in report.moves:
            if move.target in TERMINAL:
                self._settled.labels(move.target.value).inc()
            elif move.target in (State.STARTING, State.RECOVERING):
                self._attempts.labels("start" if move.target is State.STARTING else "recovery").inc()
            if move.target is State.STARTING and move.experiment_id in new_at:
                self._queue_wait.observe((now - new_at[move.experiment_id]).total_seconds())

    def count_outage(self, code: str) -> None:
        """Record that a part did not answer; a step that the database keeps from its end is told of here alone."""
        self._outages.labels(code).inc()
