"""Closing MLflow's runs when an experiment ends, however late MLflow answers.

A note in storage is older than any run of the experiment and goes when its runs are closed. So
what ended while MLflow was away, or was cancelled while it was paused, is closed all the same, by
whichever process is there then. The note stays too until MLflow has all of the experiment and its
last job is gone: one that was settled while Ray was away may still be there.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from service.dispatch.attempt_markers import AttemptMarkers, RunStatus
from service.dispatch.backfills import Backfills
from service.dispatch.conditions import Conditions
from service.dispatch.settlement import run_status
from service.dispatch.stragglers import Stragglers
from service.errors import BlobsUnavailable, ClusterUnavailable, ExperimentNotFound, StaleState, TrackingUnavailable
from service.experiment import TERMINAL, State, submission_id
from service.outage import Outages
from service.ports import ExperimentRecord, Store, Tracking

__all__ = ["CONDITION", "RunCloser"]

CONDITION: Final = "mlflow_runs_open"
SWEEP_EVERY_S: Final = 5.0


class RunCloser:
    """Sets the end state of experiments' MLflow runs: at once where it can, later where it must."""

    def __init__(
        self,
        *,
        store: Store,
        tracking: Tracking,
        markers: AttemptMarkers,
        conditions: Conditions,
        outages: Outages,
        backfills: Backfills,
        stragglers: Stragglers,
    ) -> None:
        self._store = store
        self._backfills = backfills
        self._stragglers = stragglers
        self._conditions = conditions
        self._tracking = tracking
        self._markers = markers
        self._outages = outages
        self._swept_at: datetime | None = None

    async def close(self, record: ExperimentRecord, state: State) -> None:
        """Close the runs of an experiment that is about to end in `state`; where MLflow is away, later.

        The note stays until a sweep finds the end committed: a verdict that was not is corrected then.

        Raises:
            BlobsUnavailable: If neither could be done nor noted.
        """
        status = run_status(state)
        # both known even where the experiment is deleted at once
        await self._markers.note_open_run(record.id, record.attempt, status)
        try:
            await self._ask_mlflow(record.id, status)
        except TrackingUnavailable as error:
            await self._conditions.set(record, CONDITION, f"closed when MLflow is back: {error.message}")

    async def sweep(self, *, now: datetime) -> int:
        """Close what is still open of experiments that have ended; return of how many; 0 if it is not time yet.

        Raises:
            BlobsUnavailable: If the notes cannot be read.
        """
        if self._swept_at is not None and now - self._swept_at < timedelta(seconds=SWEEP_EVERY_S):
            return 0
        self._swept_at = now
        num_closed = 0
        ids = await self._markers.open_runs()
        self._backfills.keep(set(ids))
        if ids and not await self._mlflow_answers():
            return 0  # a job that was sent now to bring what is missing would be in vain
        for experiment_id in ids:
            try:
                num_closed += await self._close_if_ended(experiment_id)
            except TrackingUnavailable as error:
                if not error.is_refusal:
                    break  # the others would be told the same
            except (BlobsUnavailable, ClusterUnavailable):
                continue  # one that cannot be read, needs a job, or has one, waits; the others do not
            except StaleState:
                continue  # its condition is being written by another
        return num_closed

    async def _close_if_ended(self, experiment_id: str) -> bool:
        try:
            record = await self._store.get(experiment_id)
        except ExperimentNotFound:  # deleted since
            open_run = await self._markers.open_run(experiment_id)
            await self._ask_mlflow(experiment_id, open_run.status or "KILLED")
        else:
            if record.state not in TERMINAL:
                return False
            open_run = await self._markers.open_run(experiment_id)
            is_complete = await self._backfills.is_done(record)  # first: what it sends may open a run
            await self._ask_mlflow(record.id, run_status(record.state))
            await self._conditions.take_back(record, CONDITION)
            if not is_complete:
                return False
        if not await self._stragglers.is_gone(submission_id(experiment_id, open_run.attempt)):
            return False
        await self._markers.forget_open_run(experiment_id)
        return True

    async def _mlflow_answers(self) -> bool:
        try:
            await self._outages.ask(TrackingUnavailable, self._tracking.ping)
        except TrackingUnavailable:
            return False
        return True

    async def _ask_mlflow(self, experiment_id: str, status: RunStatus) -> None:
        await self._outages.ask(TrackingUnavailable, lambda: self._tracking.close_runs(experiment_id, status))
