"""What a stream adds to the database's events while an experiment runs: new metric points and log lines.

MLflow and the cluster are asked once for all who watch an experiment, and no more often than they
can answer: a reader keeps what it found for a while, and each stream takes it from where it is.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, Final

import structlog

from service.edge.deps import Services
from service.edge.event_feed import News
from service.edge.server_sent import server_sent
from service.errors import ExperimentNotFound, Unavailable
from service.experiment import State, TrialState, submission_id
from service.ports import ExperimentRecord
from service.views.trials_view import finite, read_trials

__all__ = ["LiveNumbers", "LiveNumbersFeed"]

log = structlog.get_logger("service.events")

MIN_INTERVAL_S: Final = 1.0
MAX_INTERVAL_S: Final = 2.0  # where nothing new comes: a point is seen within 5 s, 2 s of which it lies with its trial
LOAD_SHARE: Final = 0.2  # of one reader's time that may go to asking
MAX_READERS_ASKING: Final = 4  # at once, for all experiments
MAX_TRIALS: Final = 16  # followed at once
FIRST_LOG_LINES: Final = 50
MOST_KEPT: Final = 10_000  # for a stream slower than that, /metrics and /logs have all of it


class LiveNumbersFeed:
    """The readers of the experiments that streams watch now, one for each."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._readers: dict[str, LiveNumbers] = {}
        self._turns = asyncio.Semaphore(MAX_READERS_ASKING)

    @asynccontextmanager
    async def follow(self, record: ExperimentRecord, news: News) -> AsyncIterator[LiveNumbers]:
        """Yield the reader of an experiment, which rings `news` when it has found something."""
        numbers = self._readers.get(record.id)
        if numbers is None:
            numbers = self._readers[record.id] = LiveNumbers(record, self._services, turns=self._turns)
        numbers.watchers.add(news)
        try:
            yield numbers
        finally:
            numbers.watchers.discard(news)
            if not numbers.watchers:
                del self._readers[record.id]
                await numbers.close()


class LiveNumbers:
    """Follows the trials and the driver's log of one experiment; what was there before is not repeated."""

    def __init__(self, record: ExperimentRecord, services: Services, *, turns: asyncio.Semaphore) -> None:
        """Start following, in the running event loop."""
        self.watchers: set[News] = set()
        self.place = 0  # so many have been found; a stream that comes now begins here
        self._id = record.id
        self._services = services
        self._turns = turns
        self._skips_history = record.attempt > 0
        self._found: deque[bytes] = deque(maxlen=MOST_KEPT)
        self._last_steps: dict[tuple[str, str], int] = {}  # (trial, metric) -> last step told
        self._finished: set[str] = set()
        self._log_place: dict[int, int] = {}  # attempt -> lines told
        self._is_asking = asyncio.Lock()
        self._is_complete = False
        self._is_failing = False  # which is told once
        self._task = asyncio.create_task(self._run())

    def behind(self, place: int) -> list[bytes]:
        """Return what was found behind `place`."""
        num_new = min(self.place - place, len(self._found))
        return list(islice(self._found, len(self._found) - num_new, None)) if num_new else []

    async def complete(self, record: ExperimentRecord) -> None:
        """Ask once more for an experiment that has ended; it has nothing new after that."""
        async with self._is_asking:
            if not self._is_complete:
                self._is_complete = True
                await self._ask(record)

    async def close(self) -> None:
        """Stop asking."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Ask at most every MIN_INTERVAL_S, and less often where asking is slow or finds nothing."""
        interval_s = MIN_INTERVAL_S
        while not self._is_complete:
            started_s, place, is_awaited = time.monotonic(), self.place, False
            async with self._is_asking, self._turns:
                try:
                    record = await self._services.store.get(self._id)
                    await self._ask(record)
                    is_awaited = record.state is State.RUNNING and not self._last_steps  # the first point is late
                except Unavailable:
                    pass  # asked again
                except ExperimentNotFound:  # another service has deleted it, which no event tells
                    self._ring(has_events=True)
            took_s = time.monotonic() - started_s
            has_news = self.place > place or is_awaited
            interval_s = MIN_INTERVAL_S if has_news else min(2 * interval_s, MAX_INTERVAL_S)
            await asyncio.sleep(max(interval_s, took_s / LOAD_SHARE))

    async def _ask(self, record: ExperimentRecord) -> None:
        if not record.attempt:
            return
        for read in (self._metrics, self._log):
            try:
                self._add(await read(record))
            except Unavailable:
                pass  # numbers wait in storage and come when their keeper is back
            except Exception:  # what cannot be read must keep nobody from the states, or from what comes after it
                if not self._is_failing:
                    log.exception("numbers_not_read", experiment_id=record.id)
                self._is_failing = True

    def _add(self, events: list[bytes]) -> None:
        self._found.extend(events)
        self.place += len(events)
        if events:
            self._ring(has_events=False)

    def _ring(self, *, has_events: bool) -> None:
        for news in self.watchers:
            news.ring(has_events=has_events)

    async def _metrics(self, record: ExperimentRecord) -> list[bytes]:
        trials = await read_trials(record, self._services)
        followed = [trial for trial in trials if trial.mlflow_run_id and trial.id not in self._finished]
        events: list[bytes] = []
        for trial in followed[:MAX_TRIALS]:
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
            if trial.state not in (TrialState.RUNNING, TrialState.PENDING):
                self._finished.add(trial.id)  # it was asked after its end
        skips, self._skips_history = self._skips_history, False
        return [] if skips else events

    async def _log(self, record: ExperimentRecord) -> list[bytes]:
        text = await self._services.cluster.logs(submission_id(record.id, record.attempt))
        lines = text.splitlines()
        told = self._log_place.get(record.attempt, max(0, len(lines) - FIRST_LOG_LINES))
        self._log_place[record.attempt] = len(lines)
        fresh = lines[told:]
        return [server_sent("log", {"attempt": record.attempt, "lines": fresh})] if fresh else []


def _metric_event(trial_id: str, step: int, values: dict[str, float]) -> bytes:
    return server_sent("metric", {"trial": trial_id, "step": step, "metrics": finite(values)})
