"""The parent run of a sweep in MLflow: created by its driver, however late MLflow answers.

What it is to have in the end (the report, the encoder of the best trial as the experiment's) is
written down in storage before it is sent and struck off when MLflow has it, so that a backfill can
send what the driver could not.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from trainer.context import JobDocument, experiment_key, trial_key
from trainer.mlflow_runs import MlflowRuns, RunDescription
from trainer.model_registry import BestEncoder, register_encoder
from trainer.recorder import DRAIN_S, RETRY_EVERY_S
from trainer.storage import BlobMissing, Storage
from trainer.unrecorded import PARENT_RECORD, PARENT_RUN

__all__ = ["ParentRun", "recorded_description"]

logger = logging.getLogger(__name__)


def recorded_description(storage: Storage, experiment_id: str) -> RunDescription | None:
    """Return what the experiment's driver said of the parent run, None where it said nothing. Raises OSError."""
    try:
        record = json.loads(storage.read(experiment_key(experiment_id, PARENT_RECORD)))
    except BlobMissing:
        return None
    return RunDescription(**record["description"])


class ParentRun:
    """While entered, a thread sees to it that the parent run is there and gets what it is to have."""

    def __init__(
        self, document: JobDocument, storage: Storage, description: RunDescription, *, drain_s: float = DRAIN_S
    ) -> None:
        """Look after the parent run of `document`'s experiment; without an MLflow there is nothing to do.

        `drain_s` is how long MLflow is given, in the end, to take what it has not taken yet.
        """
        self._document = document
        self._storage = storage
        self._description = description
        self._drain_s = drain_s
        self._key = experiment_key(document.experiment_id, PARENT_RECORD)
        self._owed: dict[str, Any] | None = None
        self._is_closing = threading.Event()
        self._give_up_at_s = float("inf")
        self._thread = threading.Thread(target=self._work, name="parent-run", daemon=True)

    def __enter__(self) -> Self:
        if self._document.mlflow_uri is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give MLflow as long to take the rest as a finished trial does; after an error, one last chance."""
        patience_s = self._drain_s if kind is None else 0.0
        self._give_up_at_s = time.monotonic() + patience_s
        self._is_closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=patience_s + 30)

    def begin(self) -> None:
        """Write down what the run says of itself; of an earlier attempt nothing is owed any more. Raises OSError."""
        if self._document.mlflow_uri is not None:
            self._write(is_recorded=True)

    def products(self, *, artifacts: Mapping[str, str], best_trial: str | None) -> None:
        """Write down what the run is to have in the end, and send it.

        Args:
            artifacts: MLflow path -> storage key.
            best_trial: Whose encoder is to be registered as the experiment's.

        Raises:
            OSError: If storage refuses.
        """
        if self._document.mlflow_uri is not None:
            self._write(is_recorded=False, artifacts=dict(artifacts), best_trial=best_trial)
            self.send_owed()

    def send_owed(self) -> None:
        """Send what is written down, soon. Raises OSError, and BlobMissing where nothing is."""
        self._owed = json.loads(self._storage.read(self._key))

    def _write(self, **record: Any) -> None:
        record["description"] = vars(self._description)
        self._storage.write(self._key, json.dumps(record).encode())

    def _work(self) -> None:
        runs: MlflowRuns | None = None
        run_id: str | None = None
        while True:
            is_last_round = self._is_closing.is_set()
            try:
                runs = runs or MlflowRuns(str(self._document.mlflow_uri), self._storage, self._document.experiment_id)
                run_id = run_id or runs.ensure_parent(self._description)
                self._send(runs, run_id)
                if is_last_round:
                    runs.delete_strays(PARENT_RUN)
            except Exception as error:  # noqa: BLE001 - whatever MLflow answers, the experiment goes on
                if time.monotonic() >= self._give_up_at_s:
                    logger.warning("MLflow did not take all of the parent run: %s", error)
                    return
                logger.warning("MLflow does not take the parent run, trying again: %s", error)
                time.sleep(RETRY_EVERY_S)
                continue
            if is_last_round:
                return
            self._is_closing.wait(RETRY_EVERY_S)

    def _send(self, runs: MlflowRuns, run_id: str) -> None:
        """Send what is owed; repeating it replaces it by the same."""
        owed = self._owed
        if owed is None:
            return
        for path, key in owed["artifacts"].items():
            runs.log_artifact(run_id, path, self._storage.read(key))
        if owed["best_trial"] is None or self._register(runs, owed["best_trial"]):
            self._storage.write(self._key, json.dumps(owed | {"is_recorded": True}).encode())
        self._owed = None

    def _register(self, runs: MlflowRuns, trial_id: str) -> bool:
        """Register a finished trial's encoder; return whether nothing is left to do about it."""
        marker = json.loads(self._storage.read(trial_key(self._document.experiment_id, trial_id, "complete.json")))
        if not marker.get("is_recorded") or marker.get("mlflow_run_id") is None:
            logger.info("the encoder of %s is not registered: MLflow does not have all of it", trial_id)
            return marker.get("is_recorded") is not False  # else a backfill brings the trial first, and it then
        encoder = BestEncoder(
            experiment_id=self._document.experiment_id,
            experiment_name=self._document.name,
            trial_id=trial_id,
            mlflow_run_id=marker["mlflow_run_id"],
            bundle_sha256=marker["bundle_sha256"],
        )
        register_encoder(runs.client, encoder)
        return True
