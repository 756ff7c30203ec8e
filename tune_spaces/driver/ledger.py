"""The ledger of a sweep: the trial table in the driver's hands, in storage after each change.

Only the newest driver writes it: an older one that still lives finds the fence of the newer and
is told to end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from trainer.context import JobDocument
from trainer.errors import StorageUnavailable, Superseded
from trainer.fence import take_fence
from trainer.launch import TrialResult
from trainer.storage import Storage
from trainer.trial_table import TrialRow, TrialRowState, read_trial_table, write_trial_table
from tune_spaces.plan import PlannedTrial

__all__ = ["DONE", "Ledger"]

logger = logging.getLogger(__name__)

DONE: Final = frozenset({"succeeded", "stopped_early", "failed"})
DRIVER: Final = "driver"  # stands where a trial's id does, for the driver's own fence


class Ledger:
    """The rows of one attempt's trials, by id."""

    def __init__(self, document: JobDocument, storage: Storage) -> None:
        self._storage = storage
        self._document = document
        self._fence = take_fence(storage, document.trial_context(DRIVER))
        self.superseded: Superseded | None = None
        self.rows: dict[str, TrialRow] = {row.id: row for row in read_trial_table(storage, document.experiment_id)}

    def plan(self, trials: Iterable[PlannedTrial]) -> None:
        """Enter trials that are not in the table yet; what an earlier attempt left running is pending again."""
        for trial in trials:
            row = self.rows.get(trial.id, TrialRow(id=trial.id, params=trial.params))
            is_final = row.state in DONE and not (row.reason or {}).get("retryable")
            self.rows[trial.id] = row if is_final else replace(row, state="pending", reason=None)
        self.write()

    def is_done(self, trial_id: str) -> bool:
        """Return whether a trial has ended for good."""
        row = self.rows.get(trial_id)
        return row is not None and row.state in DONE

    def is_owner(self) -> bool:
        """Return whether no newer driver owns the sweep."""
        try:
            self._fence.check()
        except Superseded as error:
            self.superseded = error
        return self.superseded is None

    def start(self, trial_id: str) -> None:
        """Enter that a trial runs."""
        self._change(trial_id, state="running", attempt=self._document.attempt)

    def finish(
        self,
        trial_id: str,
        result: TrialResult,
        *,
        metrics: dict[str, float],
        metric: str,
        reason: dict[str, Any] | None = None,
    ) -> None:
        """Enter how a trial ended, with the last value of each metric; `reason` is that of one a limit ended."""
        value = metrics.get(metric, math.nan)
        best = {"metric": metric, "value": value, "step": result.step} if math.isfinite(value) else None
        self._change(
            trial_id,
            state="stopped_early" if result.state == "stopped_early" else "succeeded",
            metrics=metrics,
            best=best,
            attempt=result.attempt,
            mlflow_run_id=result.mlflow_run_id,
            reason=reason,
        )

    def fail(self, trial_id: str, reason: dict[str, Any]) -> None:
        """Enter what made a trial fail."""
        self._change(trial_id, state="failed", reason=reason, attempt=self._document.attempt)

    def leave_out(self, reason: dict[str, Any]) -> None:
        """Enter why what has not ended will not be run."""
        for trial_id, row in self.rows.items():
            if row.state not in DONE:
                self.rows[trial_id] = replace(row, state="cancelled", reason=reason)

    def stop(self, kind: str) -> None:
        """Enter that the owner stopped the sweep: cancelled for good, or pending until it is resumed."""
        state: TrialRowState = "cancelled" if kind == "cancel" else "pending"
        for trial_id, row in self.rows.items():
            if row.state not in DONE:
                self.rows[trial_id] = replace(row, state=state)
        self.write()

    def write(self, *, is_last: bool = False) -> None:
        """Put the table into storage; a refusal is borne until the next change.

        Raises:
            StorageUnavailable: If storage refuses the last one.
            Superseded: If a newer driver owns the sweep and this is the last one.
        """
        try:
            self._fence.check()
            write_trial_table(self._storage, self._document.experiment_id, self.rows.values())
        except Superseded as error:
            self.superseded = error
            if is_last:
                raise
        except OSError as error:
            if is_last:
                raise StorageUnavailable(f"the trial table could not be written: {error}") from error
            logger.warning("the trial table was not written: %s", error)

    def _change(self, trial_id: str, **changes: Any) -> None:
        self.rows[trial_id] = replace(self.rows[trial_id], **changes)
        self.write()
