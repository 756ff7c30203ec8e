"""What a stream adds to the database's events while an experiment runs: new metric points and log lines."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi.sse import ServerSentEvent

from service.edge.deps import Services
from service.errors import Unavailable
from service.experiment import TrialState, submission_id
from service.ports import ExperimentRecord
from service.views.trials_view import finite, read_trials

__all__ = ["LiveNumbers"]

MIN_INTERVAL_S: Final = 1.0
LOAD_SHARE: Final = 0.2  # of one stream's time that may go to asking
MAX_TRIALS: Final = 16  # followed at once
FIRST_LOG_LINES: Final = 50


class LiveNumbers:
    """Follows the trials and the driver's log of one experiment; what was there before is not repeated."""

    def __init__(self, services: Services, *, is_late: bool) -> None:
        """Start following; `is_late` where the experiment ran before, so that there is a history to skip."""
        self._services = services
        self._skips_history = is_late
        self._last_steps: dict[tuple[str, str], int] = {}  # (trial, metric) -> last step told
        self._finished: set[str] = set()
        self._log_place: dict[int, int] = {}  # attempt -> lines told
        self._due_s = 0.0

    async def poll(self, record: ExperimentRecord, *, is_last: bool = False) -> AsyncIterator[ServerSentEvent]:
        """Yield what is new, at most every MIN_INTERVAL_S and less often where asking is slow."""
        started_s = time.monotonic()
        if not record.attempt or (started_s < self._due_s and not is_last):
            return
        try:
            for event in await self._metrics(record):
                yield event
            for event in await self._log(record):
                yield event
        except Unavailable:
            pass  # numbers wait in storage and come when their keeper is back; the stream goes on
        took_s = time.monotonic() - started_s
        self._due_s = time.monotonic() + max(MIN_INTERVAL_S, took_s / LOAD_SHARE)

    async def _metrics(self, record: ExperimentRecord) -> list[ServerSentEvent]:
        trials = await read_trials(record, self._services)
        followed = [trial for trial in trials if trial.mlflow_run_id and trial.id not in self._finished]
        events: list[ServerSentEvent] = []
        for trial in followed[:MAX_TRIALS]:
            if trial.state not in (TrialState.RUNNING, TrialState.PENDING):
                self._finished.add(trial.id)  # asked once more now, then no longer
            series = await self._services.tracking.metrics(str(trial.mlflow_run_id), sorted(trial.metrics))
            by_step: dict[int, dict[str, Any]] = defaultdict(dict)
            for key, points in series.items():
                told = self._last_steps.get((trial.id, key), 0)
                for point in points:
                    if point.step > told:
                        by_step[point.step][key] = point.value
                if points:
                    self._last_steps[trial.id, key] = max(told, points[-1].step)
            events += [_metric_event(trial.id, step, by_step[step]) for step in sorted(by_step)]
        skips, self._skips_history = self._skips_history, False
        return [] if skips else events

    async def _log(self, record: ExperimentRecord) -> list[ServerSentEvent]:
        text = await self._services.cluster.logs(submission_id(record.id, record.attempt))
        lines = text.splitlines()
        told = self._log_place.get(record.attempt, max(0, len(lines) - FIRST_LOG_LINES))
        self._log_place[record.attempt] = len(lines)
        fresh = lines[told:]
        return [ServerSentEvent(event="log", data={"attempt": record.attempt, "lines": fresh})] if fresh else []


def _metric_event(trial_id: str, step: int, values: dict[str, float]) -> ServerSentEvent:
    return ServerSentEvent(event="metric", data={"trial": trial_id, "step": step, "metrics": finite(values)})
