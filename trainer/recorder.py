"""What a trial tells MLflow: metrics by global step, params, tags, the data set, artifacts.

No MLflow call runs on the step's thread. Rank 0 records into memory; one thread makes it durable
in the outbox; another sends the outbox to MLflow, however slow or absent that is. The service sets
the end state of runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from trainer.context import TrialContext
from trainer.errors import StorageUnavailable, Superseded, TrainerError
from trainer.mlflow_runs import POINTS_A_BATCH, MlflowRuns, RunDescription
from trainer.model_registry import BestEncoder, register_encoder
from trainer.outbox import Entry, Outbox, Point, merged
from trainer.storage import Storage
from trainer.unrecorded import PARENT_RUN

__all__ = ["DRAIN_S", "RETRY_EVERY_S", "STORAGE_AWAY_MOST_S", "TrialRecorder"]

logger = logging.getLogger(__name__)

DURABLE_EVERY_S = 2.0  # a point is visible within 5 s: 2 s to storage, 1 s to MLflow, the rest is slack
FIRST_DURABLE_S = 0.5  # behind the first points MLflow is imported yet: two seconds, more where cores are taken
RETRY_EVERY_S = 2.0
DRAIN_S = 120.0  # how long who has finished waits for MLflow to take the rest
STORAGE_AWAY_MOST_S = 90.0  # refusing every write for so long, storage ends a start: a minute's outage is borne


class TrialRecorder:
    """Rank 0's pen: `metrics` and `artifact` return at once, two threads do the rest."""

    def __init__(self, *, storage: Storage, context: TrialContext, outbox: Outbox, description: RunDescription) -> None:
        self._storage = storage
        self._context = context
        self._outbox = outbox
        self._description = description
        self._buffer: list[Point] = []
        self._buffer_lock = threading.Lock()
        self._outbox_lock = threading.Lock()
        self._fatal: TrainerError | None = None
        self._is_closing = threading.Event()
        self._is_abandoned = threading.Event()
        self._num_sent = 0
        self._has_sent_all = False
        self._has_entries = threading.Event()
        self.mlflow_run_id: str | None = None
        self._writer = threading.Thread(target=self._write_until_closed, name="outbox-writer", daemon=True)
        self._sender = threading.Thread(target=self._send_until_closed, name="mlflow-sender", daemon=True)

    def start(self) -> None:
        """Start both threads; what an earlier start left unsent goes first."""
        self._writer.start()
        if self._outbox.last_number > self._outbox.sent:
            self._has_entries.set()  # else the first step comes first: importing MLflow takes a core for seconds
        if self._context.mlflow_uri is not None:
            self._sender.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record values under a global step, counted from 1.

        Raises:
            Superseded: If a later start owns the trial.
            StorageUnavailable: If storage has refused every write for too long.
        """
        self.check()
        now_ms = time.time_ns() // 1_000_000
        points = [Point(key, step, float(value), now_ms) for key, value in values.items()]
        with self._buffer_lock:
            self._buffer.extend(points)

    def start_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record what holds of this start, which begins behind a global step.

        It goes behind what earlier starts said of themselves: such a step is taken where two begin
        at one, or one goes back to an older checkpoint. Raises what `metrics` does.
        """
        with self._outbox_lock:
            free = self._outbox.free_step(max(1, step), values)
        self.metrics(free, values)

    def artifact(self, path: str, data: bytes) -> None:
        """Keep `data` in storage and put it in line to become the MLflow artifact `path`."""
        self.persist()
        key = self._context.key(f"artifacts/{self._outbox.generation:08d}/{path}")  # no other start writes there
        self._storage.write(key, data)
        with self._outbox_lock:
            self._outbox.append_artifact(key=key, path=path)
        self._has_entries.set()

    def encoder(self, bundle_sha256: str) -> None:
        """Put the encoder in line to be registered as the experiment's, behind the files of its bundle."""
        with self._outbox_lock:
            self._outbox.append_encoder(bundle_sha256)
        self._has_entries.set()

    def persist(self) -> None:
        """Make durable all that was recorded so far; a checkpoint is committed only behind this."""
        with self._outbox_lock:
            with self._buffer_lock:
                points, self._buffer = self._buffer, []
            try:
                if points:
                    self._outbox.append_points(points)
                    self._has_entries.set()
            except BaseException:
                with self._buffer_lock:
                    self._buffer = points + self._buffer
                raise

    def series(self, *keys: str) -> dict[str, list[tuple[int, float]]]:
        """Return (step, value) of each key since the trial's first start."""
        self.persist()
        with self._outbox_lock:
            return self._outbox.series(*keys)

    def check(self) -> None:
        """Raise what ended the writer thread, if something did."""
        if self._fatal is not None:
            raise self._fatal

    def close(self, *, drain_s: float, is_patient: bool = False) -> bool:
        """Make all durable, give MLflow time to take it, and let go of threads; closing again waits for nothing.

        Args:
            drain_s: How long MLflow may take.
            is_patient: Whether it may take as long again each time that it took something.

        Returns:
            Whether MLflow has everything.

        Raises:
            Superseded: If a later start owns the trial.
            OSError: If storage refuses the last points.
        """
        patience_s = 0.0
        try:
            self.persist()
            patience_s = 0.0 if self._is_closing.is_set() else drain_s
        finally:
            self._is_closing.set()
            self._has_entries.set()
            self._writer.join()
            self._await_sender(patience_s, is_patient=is_patient)
            self._is_abandoned.set()
        return self._context.mlflow_uri is None or self._has_sent_all

    def _await_sender(self, patience_s: float, *, is_patient: bool) -> None:
        while self._sender.is_alive():
            before = self._num_sent
            self._sender.join(patience_s)
            if not is_patient or self._num_sent == before:
                return

    def _write_until_closed(self) -> None:
        worked_at_s = time.monotonic()
        before = self._outbox.last_number
        while not self._is_closing.wait(FIRST_DURABLE_S if self._outbox.last_number == before else DURABLE_EVERY_S):
            try:
                self.persist()
                worked_at_s = time.monotonic()
            except Superseded as error:
                self._fatal = error
                return
            except OSError as error:
                away_s = time.monotonic() - worked_at_s
                logger.warning("storage has refused metrics for %.0f s: %s", away_s, error)
                if away_s >= STORAGE_AWAY_MOST_S:
                    self._fatal = StorageUnavailable(f"storage refused metrics for {away_s:.0f} s, the last: {error}")
                    return

    def _send_until_closed(self) -> None:
        runs: MlflowRuns | None = None
        while not self._is_abandoned.is_set():
            self._has_entries.wait()
            self._has_entries.clear()
            is_last_round = self._is_closing.is_set()
            try:
                runs = runs or MlflowRuns(str(self._context.mlflow_uri), self._storage, self._context.experiment_id)
                self.mlflow_run_id = self.mlflow_run_id or self._ensure_run(runs)
                self._send(runs, self.mlflow_run_id)
                if is_last_round:
                    self._delete_strays(runs)
            except Exception as error:  # noqa: BLE001 - whatever MLflow answers, training goes on and it is tried again
                logger.warning("MLflow does not take the metrics, trying again: %s", error)
                self._is_abandoned.wait(RETRY_EVERY_S)
                self._has_entries.set()
                continue
            if is_last_round:
                self._has_sent_all = not self._is_abandoned.is_set()
                return

    def _ensure_run(self, runs: MlflowRuns) -> str:
        parent = (
            runs.ensure_parent(self._description.of_parent()) if self._context.is_only_trial else runs.find_parent()
        )
        if parent is None:
            raise LookupError("the experiment's parent run is not there yet")
        return runs.ensure_trial(self._context.trial_id, parent, self._description)

    def _delete_strays(self, runs: MlflowRuns) -> None:
        runs.delete_strays(self._context.trial_id)
        if self._context.is_only_trial:
            runs.delete_strays(PARENT_RUN)

    def _send(self, runs: MlflowRuns, run_id: str) -> None:
        while entries := self._unsent():
            # A crash between the two sends these points again, perhaps together with others behind
            # them: MLflow looks at each point by itself, whatever call it came in.
            for entry in merged(entries, most_points=POINTS_A_BATCH):
                if self._is_abandoned.is_set():
                    return
                self._send_entry(runs, run_id, entry)
                self._outbox.mark_sent(entry.number)
                self._num_sent += 1

    def _unsent(self) -> list[Entry]:
        with self._outbox_lock:
            return self._outbox.unsent()

    def _send_entry(self, runs: MlflowRuns, run_id: str, entry: Entry) -> None:
        if entry.points:
            runs.log_points(run_id, entry.points)
        if entry.artifact:
            runs.log_artifact(run_id, entry.artifact["path"], self._storage.read(entry.artifact["key"]))
        if entry.bundle_sha256:
            context = self._context
            encoder = BestEncoder(
                experiment_id=context.experiment_id,
                experiment_name=context.experiment_name,
                trial_id=context.trial_id,
                mlflow_run_id=run_id,
                bundle_sha256=entry.bundle_sha256,
            )
            register_encoder(runs.client, encoder)
