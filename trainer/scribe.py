"""The scribe: all that rank 0 does for a run beside training, off the step's thread.

It holds the fence, keeps metrics and checkpoints, listens for a wish to stop, and notes when each
stage began. The other ranks have none.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.context import TrialContext, experiment_key
from trainer.errors import StorageUnavailable, Superseded
from trainer.fence import Fence, take_fence
from trainer.mlflow_runs import RunDescription
from trainer.outbox import Outbox
from trainer.recorder import RETRY_EVERY_S, STORAGE_AWAY_MOST_S, TrialRecorder
from trainer.storage import BlobMissing, Storage, open_storage

__all__ = ["Scribe", "StopKind"]

logger = logging.getLogger(__name__)

StopKind = Literal["pause", "cancel", "early"]
Result = TypeVar("Result")

CHECKPOINT_EVERY_S = 15.0  # what a crash in training costs at most, besides the restart
CLOSE_DRAIN_S = 3.0  # what a start that fails or is stopped gives MLflow; the rest waits in storage
STOP_POLL_EVERY_S = 0.5


class Scribe:
    """Rank 0's books of one start of a trial."""

    def __init__(self, context: TrialContext) -> None:
        self.context = context
        self.storage: Storage = open_storage(context.storage)
        self.fence: Fence = take_fence(self.storage, context)
        self.checkpoints = CheckpointStore(self.storage, context, self.fence)
        self.recorder: TrialRecorder | None = None
        self.stop_wish: StopKind | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._checkpoints_fail_since_s: float | None = None
        self._last_checkpoint_s = time.monotonic()
        self._marks: list[dict[str, str]] = []
        self._is_closed = threading.Event()
        threading.Thread(target=self._poll_stop, name="stop-poll", daemon=True).start()

    def begin(self, description: RunDescription) -> None:
        """Start recording; what an earlier start left unsent goes first."""
        # for whoever sends what this start could not: MLflow may come back when it has ended
        self.storage.write(self.context.key("metrics/description.json"), json.dumps(vars(description)).encode())
        outbox = Outbox(self.storage, self.context.key("metrics/"), self.fence)
        self.recorder = TrialRecorder(
            storage=self.storage, context=self.context, outbox=outbox, description=description
        )
        self.recorder.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record values under a global step."""
        self._recorder.metrics(step, values)

    def start_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record what holds of this start, which begins behind a global step."""
        self._recorder.start_metrics(step, values)

    def product(self, name: str, data: bytes) -> str:
        """Keep what the trial leaves beside its artifacts, and return its key, which no other start writes.

        Raises:
            Superseded: If a later start owns the trial.
            StorageUnavailable: If storage refuses it for longer than an outage is borne.
        """
        stem, dot, suffix = name.partition(".")
        name = f"{stem}-{self.fence.generation:08d}{dot}{suffix}"
        self._patiently(name, lambda: self._write_owned(name, data))
        return self.context.key(name)

    def artifact(self, path: str, data: bytes) -> None:
        """Keep an artifact of the trial. Raises what `product` does."""

        def keep() -> None:
            self.fence.check()  # in an evaluation of minutes nothing else asks whose the trial is
            self._recorder.artifact(path, data)

        self._patiently(path, keep)

    def encoder(self, bundle_sha256: str) -> None:
        """Register the encoder of this bundle as the experiment's."""
        self._patiently("the encoder's place in line", lambda: self._recorder.encoder(bundle_sha256))

    def series(self, *keys: str) -> dict[str, list[tuple[int, float]]]:
        """Return (step, value) of each metric since the trial's first start."""
        return self._patiently("the last metrics", lambda: self._recorder.series(*keys))

    def mark(self, stage: str) -> None:
        """Note that a stage begins now, for `/experiments/{id}/timeline`."""
        self._marks.append({"stage": stage, "at": datetime.now(UTC).isoformat()})
        key = experiment_key(self.context.experiment_id, f"attempts/{self.context.attempt}/timeline.json")
        document = {"trial": self.context.trial_id, "marks": self._marks}
        self._executor.submit(self._write_quietly, key, document)

    # --- checkpoints ------------------------------------------------------------------------------

    def is_checkpoint_due(self, score: float | None = None) -> bool:
        """Return whether this would be the best, or enough time has passed and the one before is written."""
        if self.checkpoints.is_best(score):
            return True
        is_idle = self._pending is None or self._pending.done()
        return is_idle and time.monotonic() - self._last_checkpoint_s >= CHECKPOINT_EVERY_S

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint behind the metrics up to it; returns at once."""
        self._settle_pending()
        self._last_checkpoint_s = time.monotonic()
        self._pending = self._executor.submit(self._save, checkpoint)

    def checkpoint_now(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and return when it is there.

        Raises:
            StorageUnavailable: If storage refuses it for longer than an outage is borne.
        """
        self._settle_pending()
        self._patiently(f"the checkpoint of step {checkpoint.step}", lambda: self._save(checkpoint))

    def _save(self, checkpoint: Checkpoint) -> None:
        self._recorder.persist()
        self.checkpoints.save(checkpoint)

    def _settle_pending(self) -> None:
        """Look at how the last background write ended; an outage of storage is borne for a while."""
        if self._pending is None:
            return
        try:
            self._pending.result()
            self._checkpoints_fail_since_s = None
        except Superseded:
            raise
        except OSError as error:
            logger.warning("a checkpoint was lost: %s", error)
            now_s = time.monotonic()
            self._checkpoints_fail_since_s = self._checkpoints_fail_since_s or now_s
            away_s = now_s - self._checkpoints_fail_since_s
            if away_s >= STORAGE_AWAY_MOST_S:
                raise StorageUnavailable(
                    f"storage refused checkpoints for {away_s:.0f} s, the last: {error}"
                ) from error
        finally:
            self._pending = None

    # --- ends -------------------------------------------------------------------------------------

    def complete(self, marker: Mapping[str, Any], *, drain_s: float) -> None:
        """Write the trial's completion marker, the last thing of all, and put the pen down.

        Raises:
            Superseded: If a later start owns the trial.
            StorageUnavailable: If storage refuses it for longer than an outage is borne.
        """
        self._settle_pending()
        self._patiently("the last metrics", self._recorder.persist)
        is_sent = self._recorder.close(drain_s=drain_s)
        if not is_sent:
            logger.warning("MLflow did not take everything in %.0f s; the rest waits in storage", drain_s)
        document = {
            **marker,
            "attempt": self.context.attempt,
            "mlflow_run_id": self._recorder.mlflow_run_id,
            "is_recorded": is_sent,
        }
        self._patiently(
            "the completion marker", lambda: self._write_owned("complete.json", json.dumps(document).encode())
        )
        self.close()

    def close(self) -> None:
        """Make durable what was recorded and let go of threads; closing again does nothing."""
        self._is_closed.set()
        self._executor.shutdown(wait=True)
        if self.recorder is None:
            return
        try:
            self.recorder.close(drain_s=CLOSE_DRAIN_S)
        except (Superseded, OSError) as error:  # on the way out; what led here is raised already
            logger.warning("the last metrics were not kept: %s", error)

    @property
    def _recorder(self) -> TrialRecorder:
        if self.recorder is None:
            raise RuntimeError("the scribe has not begun")
        return self.recorder

    def _write_owned(self, name: str, data: bytes) -> None:
        self.fence.check()
        self.storage.write(self.context.key(name), data)

    def _patiently(self, what: str, work: Callable[[], Result]) -> Result:
        """Return `work()`, tried again while storage is away: nothing is lost by waiting once training has ended."""
        began_s = time.monotonic()
        while True:
            try:
                return work()
            except OSError as error:
                away_s = time.monotonic() - began_s
                if away_s >= STORAGE_AWAY_MOST_S:
                    raise StorageUnavailable(f"storage refused {what} for {away_s:.0f} s, the last: {error}") from error
                logger.warning("storage refuses %s, trying again: %s", what, error)
                time.sleep(RETRY_EVERY_S)

    def _poll_stop(self) -> None:
        key = experiment_key(self.context.experiment_id, "stop.json")
        while not self._is_closed.wait(STOP_POLL_EVERY_S):
            try:
                wish = json.loads(self.storage.read(key))
            except (BlobMissing, OSError, ValueError):
                continue  # none was written, or storage is away: asked again in half a second
            if wish.get("attempt") == self.context.attempt:
                self.stop_wish = wish["kind"]
                return

    def _write_quietly(self, key: str, document: Mapping[str, Any]) -> None:
        try:
            self.storage.write(key, json.dumps(document).encode())
        except OSError as error:  # a note, not worth a run
            logger.warning("%s was not written: %s", key, error)
