"""The driver of a sweep: which trials there are, what became of each, which is best, and the report.

A driver that starts again finds the trials where they were: those with a completion marker are
not run again, the others resume from their own checkpoints under the same ids.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

from trainer.context import JobDocument, ParentTrial, TrialContext, bundle_key, experiment_key, trial_key
from trainer.errors import Stopped
from trainer.job import JobEnd
from trainer.launch import finished_trial
from trainer.mlflow_runs import RunDescription, flatten
from trainer.parent_run import ParentRun
from trainer.storage import BlobMissing, Storage
from trainer.trial_table import TrialRow, read_trial_table
from tune_spaces.driver.budget import Budget
from tune_spaces.driver.ending import end_of
from tune_spaces.driver.last_values import last_values
from tune_spaces.driver.ledger import DONE, Ledger
from tune_spaces.driver.outcome import Outcome, RunTrials
from tune_spaces.driver.referee import told_to_stop
from tune_spaces.driver.supply import TrialSupply, open_supply
from tune_spaces.errors import SweepInterrupted
from tune_spaces.plan import has_seed_of, planned_trials
from tune_spaces.spec import SweepSpec, complete

__all__ = ["SweepDriver", "run_sweep"]

logger = logging.getLogger(__name__)


def run_sweep(document: JobDocument, storage: Storage, *, run_trials: RunTrials | None = None) -> JobEnd:
    """Run one attempt of a sweep and return how it ended by itself.

    Args:
        document: Of this attempt.
        storage: Where trials keep their markers.
        run_trials: How trials are run; None: on Ray Tune.

    Raises:
        Stopped: If a pause or a cancel was asked for.
        Superseded: If a newer attempt owns the sweep.
        SweepInterrupted: If the trials ended before their time and no one asked for it.
        StorageUnavailable: If the trial table cannot be written.
    """
    sweep = complete(SweepSpec.model_validate(document.spec))
    with ParentRun(document, storage, _describe(document, sweep)) as parent_run:
        driver = SweepDriver(sweep, document, storage)
        parent_run.begin()
        driver.run(run_trials)
        rows = list(driver.ledger.rows.values())
        end = end_of(sweep, rows, limit=driver.limit)
        best_trial = end.best["trial"] if end.best is not None else None
        parent_run.products(artifacts=_report(sweep, document, storage, rows, driver.limit), best_trial=best_trial)
    return end


class SweepDriver:
    """One attempt of a sweep."""

    def __init__(self, sweep: SweepSpec, document: JobDocument, storage: Storage) -> None:
        self.sweep = sweep
        self.document = document
        self.storage = storage
        self.ledger = Ledger(document, storage)
        self.budget = Budget(
            sweep.limits, storage, document.experiment_id, running=self._running, is_owner=self.ledger.is_owner
        )
        self.limit: str | None = None  # that ended the sweep before its trials, in words
        self._report_loader = threading.Thread(target=_load_reports, name="report-loader", daemon=True)
        parent = document.parent
        self._parent_rows = {row.id: row for row in read_trial_table(storage, parent.experiment_id)} if parent else {}
        self._adopt_parent()
        self.supply: TrialSupply = open_supply(sweep, self.ledger.rows, self._settle_finished())
        self.ledger.plan(self.supply.known())

    def run(self, run_trials: RunTrials | None = None) -> None:
        """Run the trials that have not ended, and raise if they still have not."""
        left = self._num_left()
        if left and self.budget.reached is None:
            with self.budget:
                (run_trials or _on_ray())(
                    self.sweep,
                    self.document,
                    self.supply,
                    num_trials=left,
                    contexts=self.context,
                    on_start=self._start,
                    on_end=self._end,
                    should_end=self._should_end,
                )
        self._end_by_limit()
        left, kind = self._num_left(), self._stop_wish()
        if left and kind is not None:
            self.ledger.stop(kind)
            raise Stopped(f"stopped by a {kind} with {left} trials left", kind=kind, step=None)
        self.ledger.write(is_last=True)
        if left:
            raise SweepInterrupted(f"the driver was interrupted with {left} trials left", trials_left=left)

    def _end_by_limit(self) -> None:
        """Leave out what a limit forbids to run. A cancel that the service sends at the same limit changes nothing."""
        total, most = self._num_planned(), self.sweep.limits.max_trials
        reached = self.budget.reached
        if reached is None and total > most and self._num_left() == total - most:
            reached = f"limits.max_trials = {most} were run"
        if reached is not None and (left := self._num_left()):
            self.limit = f"{reached}: {left} of {total} trials were left out"
            self.ledger.leave_out(_limit_reached(reached))

    def context(self, trial_id: str) -> TrialContext:
        """Return the context of a trial; one that a continued sweep has too starts from its checkpoint."""
        parent = self.document.parent
        context = self.document.trial_context(trial_id)
        if parent is None:
            return context
        own, theirs = self.ledger.rows.get(trial_id), self._parent_rows.get(trial_id)
        is_same = own is not None and theirs is not None and own.params == theirs.params
        link = ParentTrial(experiment_id=parent.experiment_id, trial_id=trial_id if is_same else None)
        return context.model_copy(update={"parent": link})

    def _num_planned(self) -> int:
        return self.sweep.num_trials_searched() if self.sweep.search == "optuna" else len(list(self.supply.known()))

    def _num_left(self) -> int:
        if self.limit is not None:
            return 0  # the others have been left out
        return self._num_planned() - sum(row.state in DONE for row in self.ledger.rows.values())

    # --- what earlier attempts and a continued sweep have done ------------------------------------

    def _settle_finished(self) -> frozenset[str]:
        """Enter every trial that has a completion marker, and return the ids that have ended for good."""
        for trial_id, row in list(self.ledger.rows.items()):
            if row.state not in DONE or row.state == "failed":
                self._finish_by_marker(trial_id)
        return frozenset(
            trial_id
            for trial_id, row in self.ledger.rows.items()
            if row.state in DONE and not (row.reason or {}).get("retryable")
        )

    def _finish_by_marker(self, trial_id: str) -> bool:
        context = self.context(trial_id)
        result = finished_trial(context)
        if result is not None:
            metrics = last_values(self.storage, context, result)
            reason = self._why_ended(trial_id) if result.state == "stopped_early" else None
            self.ledger.finish(trial_id, result, metrics=metrics, metric=self.sweep.metric, reason=reason)
        return result is not None

    def _why_ended(self, trial_id: str) -> dict[str, Any] | None:
        """Return the reason of a trial that a limit stopped early, None of one that the scheduler did."""
        reached = self.budget.reached
        if reached is None or told_to_stop(self.storage, self.document.experiment_id, trial_id):
            return None
        return _limit_reached(reached)

    def _adopt_parent(self) -> None:
        """Take over the trials of the continued sweep under the same ids: what ended for good with marker and encoder.

        The others, those that failed or that a limit ended among them, are to be run again, from
        their last checkpoint where there is one; their params and epochs stay what they were.
        """
        parent = self.document.parent
        if parent is None or self.ledger.rows:
            return
        planned = {trial.id: trial.params for trial in planned_trials(self.sweep)}
        is_suggested = self.sweep.search == "optuna"
        for row in self._parent_rows.values():
            # One that is another trial here, since the space or the seeds changed before it, starts anew.
            if not (has_seed_of(self.sweep, row.id, row.params) if is_suggested else planned.get(row.id) == row.params):
                continue
            is_final = self._is_final(row)
            self._adopt_blobs(parent.experiment_id, row.id, is_final=is_final)
            self.ledger.rows[row.id] = row if is_final else TrialRow(id=row.id, params=row.params)

    def _adopt_blobs(self, parent_id: str, trial_id: str, *, is_final: bool) -> None:
        """Copy what the scheduler heard of a trial and, of one that ended for good, its encoder and its marker."""
        own_id = self.document.experiment_id
        self._copy(trial_key(parent_id, trial_id, "epochs.json"), trial_key(own_id, trial_id, "epochs.json"))
        if not is_final:
            return
        try:
            data = self.storage.read(trial_key(parent_id, trial_id, "complete.json"))
        except BlobMissing:
            return  # the table keeps how it ended
        marker = json.loads(data)
        if marker["state"] != "stopped_early":  # such a one has no encoder
            self._copy(bundle_key(parent_id, trial_id, marker), bundle_key(own_id, trial_id, marker))
        # The marker last, as always.
        self.storage.create(trial_key(own_id, trial_id, "complete.json"), _owing_nothing(marker))

    def _is_final(self, row: TrialRow) -> bool:
        if row.state == "stopped_early":  # fifo stops none: what it has was ended by a limit, said or not
            return self.sweep.scheduler != "fifo" and row.reason is None
        return row.state == "succeeded"

    def _copy(self, source: str, target: str) -> None:
        """Copy a blob, if there is one."""
        try:
            data = self.storage.read(source)
        except BlobMissing:
            return
        self.storage.create(target, data)

    # --- what happens meanwhile -------------------------------------------------------------------

    def _start(self, trial_id: str) -> None:
        self.ledger.plan(trial for trial in self.supply.known() if trial.id not in self.ledger.rows)
        self.ledger.start(trial_id)
        logger.info("trial %s starts: %s", trial_id, dict(self.ledger.rows[trial_id].params))

    def _should_end(self) -> bool:
        return self.ledger.superseded is not None or self.budget.reached is not None or self._stop_wish() is not None

    def _running(self) -> list[str]:
        return [row.id for row in list(self.ledger.rows.values()) if row.state == "running"]

    def _end(self, outcome: Outcome) -> None:
        trial_id = outcome.trial
        if outcome.state == "stopped":
            return
        if self._report_loader.ident is None:
            self._report_loader.start()
        if not self._finish_by_marker(trial_id):
            reason = outcome.reason or {"code": "no_marker", "message": "it ended without a marker", "retryable": True}
            self.ledger.fail(trial_id, reason)
        row = self.ledger.rows[trial_id]
        self._count_images(trial_id)
        logger.info("trial %s %s: %s", trial_id, row.state, row.best or row.reason)
        value = row.best["value"] if row.best is not None and row.state == "succeeded" else None
        self.supply.tell(trial_id, value)

    def _count_images(self, trial_id: str) -> None:
        spec = next(trial.spec for trial in self.supply.known() if trial.id == trial_id)
        result = finished_trial(self.context(trial_id))
        steps_an_epoch = result.step // spec.epochs if result is not None and result.state == "succeeded" else 0
        self.budget.count(trial_id, unreported=steps_an_epoch * spec.batch_size)

    def _stop_wish(self) -> str | None:
        """Return pause or cancel if the owner asked this attempt for it."""
        try:
            wish = json.loads(self.storage.read(experiment_key(self.document.experiment_id, "stop.json")))
        except (BlobMissing, OSError, ValueError):
            return None  # none was written, or storage is away: asked again soon
        return str(wish["kind"]) if wish.get("attempt") == self.document.attempt else None


def _limit_reached(words: str) -> dict[str, Any]:
    return {"code": "limit_reached", "message": words, "retryable": False}


def _owing_nothing(marker: Mapping[str, Any]) -> bytes:
    """Return an adopted marker without the note that MLflow misses something: the outbox stays with the parent."""
    is_owing = not marker.get("is_recorded", True)
    return json.dumps({key: value for key, value in marker.items() if key != "is_recorded" or not is_owing}).encode()


def _on_ray() -> RunTrials:
    from tune_spaces.driver.execution import run_trials  # Ray, which settling what has ended does not need

    return run_trials


def _describe(document: JobDocument, sweep: SweepSpec) -> RunDescription:
    return RunDescription(
        name=document.name,
        params=flatten(sweep.model_dump(mode="json")),
        tags={"simclr.kind": document.kind, **({"simclr.study": sweep.study} if sweep.study else {})},
    )


def _load_reports() -> None:
    """Import what draws the report while trials run: no trial's start waits for it, nor the sweep's end."""
    import tune_spaces.reports.publication  # noqa: F401 - for the one who imports it next


def _report(
    sweep: SweepSpec, document: JobDocument, storage: Storage, rows: list[TrialRow], limit: str | None
) -> Mapping[str, str]:
    from tune_spaces.reports.publication import publish_report  # matplotlib: half a second of CPU

    return publish_report(sweep, document, storage, rows, limit=limit)
