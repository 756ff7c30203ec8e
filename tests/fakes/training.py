"""A start of a fake trial: it goes on from the last checkpoint and records by the real outbox behind the real fence."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from tests.fakes.tracking import FakeTracking
from trainer.context import PRETRAIN_TRIAL_ID, JobDocument
from trainer.fence import take_fence
from trainer.outbox import Outbox, Point
from trainer.storage import BlobMissing, Storage

__all__ = ["METRICS", "FakeStart"]

METRICS: Final = ("loss", "lr")  # one point each for every step, counted from 1
CHECKPOINT_EVERY: Final = 4  # steps
_SNAPSHOT_EVERY: Final = 3  # entries


class FakeStart:
    """Made where a real start begins. Every method raises Superseded once a later start owns the trial."""

    def __init__(self, storage: Storage, document: JobDocument, tracking: FakeTracking | None) -> None:
        context = document.trial_context(PRETRAIN_TRIAL_ID, is_only_trial=True)
        self._storage = storage
        self._tracking = tracking
        self._experiment_id = document.experiment_id
        self._attempt = document.attempt
        self._checkpoint = context.key("checkpoints/last")
        self._outbox = Outbox(
            storage, context.key("metrics/"), take_fence(storage, context), snapshot_every=_SNAPSHOT_EVERY
        )
        self.step = self._last_checkpoint()

    def train_to(self, step: int, *, at: datetime) -> None:
        """Send what was recorded before, then compute and record the steps up to `step`."""
        self.send()
        steps = range(self.step + 1, step + 1)
        at_ms = int(at.timestamp() * 1000)
        # Another attempt computes the same but for rounding, at another time: a second point would show.
        points = [Point(key, each, each + self._attempt * 1e-9, at_ms) for each in steps for key in METRICS]
        self._outbox.append_points(points)
        if step // CHECKPOINT_EVERY > self.step // CHECKPOINT_EVERY:
            self._storage.write(self._checkpoint, str(step - step % CHECKPOINT_EVERY).encode())
        self.step = max(step, self.step)

    def send(self) -> None:
        """Give MLflow what it does not have yet, as far as it answers."""
        while self._send_one():
            pass

    def send_and_die(self) -> None:
        """Give MLflow one entry and note nothing of it: the next start sends it again."""
        self._send_one(is_noted=False)

    def _send_one(self, *, is_noted: bool = True) -> bool:
        if self._tracking is None or self._tracking.is_down:
            return False
        entries = self._outbox.unsent()
        if not entries:
            return False
        run = self._tracking.ensure_run(self._experiment_id, PRETRAIN_TRIAL_ID)
        self._tracking.log_points(run, entries[0].points)
        if is_noted:
            self._outbox.mark_sent(entries[0].number)
        return True

    def _last_checkpoint(self) -> int:
        try:
            return int(self._storage.read(self._checkpoint))
        except BlobMissing:
            return 0
