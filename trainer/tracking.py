"""What a trial tells MLflow: metrics by global step, params, tags, the data set, artifacts.

No MLflow call runs on the step's thread. Rank 0 records into memory; one thread makes it durable
in the outbox; another sends the outbox to MLflow, however slow or absent that is. Runs are found
by tag or created, so a retry makes no second one. The service sets their end state.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.context import TrialContext
from trainer.errors import StorageUnavailable, Superseded, TrainerError
from trainer.model_registry import BestEncoder, register_encoder
from trainer.outbox import Entry, Outbox, Point, merged
from trainer.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["DRAIN_S", "EXPERIMENT_NAME", "MlflowRuns", "RunDescription", "TrialRecorder", "flatten"]

logger = logging.getLogger(__name__)

EXPERIMENT_NAME = "simclr"
TAG_EXPERIMENT = "simclr.experiment_id"
TAG_TRIAL = "simclr.trial_id"
TAG_ROLE = "simclr.role"
TAG_PARENT = "mlflow.parentRunId"

DURABLE_EVERY_S = 1.0  # a point is visible within 5 s: 1 s to storage, 1 s to MLflow, the rest is slack
RETRY_EVERY_S = 2.0
DRAIN_S = 120.0  # how long who has finished waits for MLflow to take the rest
MAX_FAILED_WRITES = 30  # of the outbox, in a row: half a minute and more of storage being down
POINTS_A_BATCH = 1000  # MLflow's limit for one log-batch call


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested JSON as flat MLflow params: dotted path -> text; lists stay JSON."""
    flat: dict[str, str] = {}
    for name, value in document.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value if isinstance(value, str) else json.dumps(value)
    return flat


class RunDescription:
    """What an MLflow run says of itself from the start: name, params, tags and data set."""

    def __init__(
        self, *, name: str, params: Mapping[str, str], tags: Mapping[str, str], dataset: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.params = dict(params)
        self.tags = dict(tags)
        self.dataset = dict(dataset) if dataset else None

    def of_parent(self) -> RunDescription:
        """Return what the parent run of an only trial says: the same, but for the trial's part of the name."""
        return RunDescription(name=self.name.rpartition("/")[0], params=self.params, tags=self.tags)


class MlflowRuns:
    """Runs of one experiment, found by tag or created. Raises what the MLflow client raises."""

    def __init__(self, uri: str, experiment_id: str) -> None:
        from mlflow import MlflowClient

        self.client: MlflowClient = MlflowClient(tracking_uri=uri)
        self._experiment_id = experiment_id
        self._mlflow_experiment_id = self._find_or_create_experiment()

    def _find_or_create_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(EXPERIMENT_NAME)
        if found is None:
            try:
                return str(self.client.create_experiment(EXPERIMENT_NAME))
            except MlflowException:  # someone else was first: what they made is found now, or this raises
                found = self.client.get_experiment_by_name(EXPERIMENT_NAME)
                if found is None:
                    raise
        return str(found.experiment_id)

    def find_parent(self) -> str | None:
        """Return the run id of the experiment's parent run."""
        return self._find(f"tags.`{TAG_ROLE}` = 'parent'")

    def ensure_parent(self, description: RunDescription) -> str:
        """Return the experiment's parent run. One process creates it: the driver, or an only trial's rank 0."""
        return self.find_parent() or self._create(description, {TAG_ROLE: "parent"}, self.find_parent)

    def ensure_trial(self, trial_id: str, parent_run_id: str, description: RunDescription) -> str:
        """Return the trial's run. Only the start that holds the trial's fence creates it."""

        def find() -> str | None:
            return self._find(f"tags.`{TAG_TRIAL}` = '{trial_id}'")

        tags = {TAG_ROLE: "trial", TAG_TRIAL: trial_id, TAG_PARENT: parent_run_id}
        return find() or self._create(description, tags, find)

    def log_points(self, run_id: str, points: tuple[Point, ...]) -> None:
        """Log points; those that the run has already, equal to the bit, are kept once."""
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.timestamp_ms, point.step) for point in points]
        for start in range(0, len(metrics), POINTS_A_BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + POINTS_A_BATCH])

    def log_artifact(self, run_id: str, path: str, data: bytes) -> None:
        """Put `data` as the run's artifact `path`; repeating replaces it by the same bytes."""
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / name
            file.write_bytes(data)
            self.client.log_artifact(run_id, str(file), artifact_path=folder or None)

    def _find(self, condition: str) -> str | None:
        runs = self.client.search_runs(
            [self._mlflow_experiment_id],
            filter_string=f"tags.`{TAG_EXPERIMENT}` = '{self._experiment_id}' AND {condition}",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        return str(runs[0].info.run_id) if runs else None

    def _create(self, description: RunDescription, tags: dict[str, str], find: Callable[[], str | None]) -> str:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        run = self.client.create_run(
            self._mlflow_experiment_id,
            run_name=description.name,
            tags={TAG_EXPERIMENT: self._experiment_id, **tags, **description.tags},
        )
        created = str(run.info.run_id)
        # A request that timed out may have been obeyed all the same: the oldest is the one.
        run_id = find() or created
        if run_id != created:
            self.client.delete_run(created)
        self.client.log_batch(run_id, params=[Param(key, value[:6000]) for key, value in description.params.items()])
        if description.dataset:
            dataset = Dataset(**description.dataset)
            self.client.log_inputs(
                run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "pretrain")])]
            )
        return run_id


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
        self._failed_writes = 0
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
            StorageUnavailable: If storage has refused too many writes in a row.
        """
        self.check()
        now_ms = time.time_ns() // 1_000_000
        points = [Point(key, step, float(value), now_ms) for key, value in values.items()]
        with self._buffer_lock:
            self._buffer.extend(points)

    def artifact(self, path: str, data: bytes) -> None:
        """Keep `data` in storage and put it in line to become the MLflow artifact `path`."""
        self.persist()
        key = self._context.key(f"artifacts/{path}")
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
        while not self._is_closing.wait(DURABLE_EVERY_S):
            try:
                self.persist()
                self._failed_writes = 0
            except Superseded as error:
                self._fatal = error
                return
            except OSError as error:
                self._failed_writes += 1
                logger.warning("storage refused metrics (%d in a row): %s", self._failed_writes, error)
                if self._failed_writes >= MAX_FAILED_WRITES:
                    self._fatal = StorageUnavailable(
                        f"storage refused {MAX_FAILED_WRITES} writes in a row, the last: {error}"
                    )
                    return

    def _send_until_closed(self) -> None:
        runs: MlflowRuns | None = None
        while not self._is_abandoned.is_set():
            self._has_entries.wait()
            self._has_entries.clear()
            is_last_round = self._is_closing.is_set()
            try:
                runs = runs or MlflowRuns(str(self._context.mlflow_uri), self._context.experiment_id)
                self.mlflow_run_id = self.mlflow_run_id or self._ensure_run(runs)
                self._send(runs, self.mlflow_run_id)
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
