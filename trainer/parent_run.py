"""The parent run of an experiment in MLflow: created by its driver, however late MLflow answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from trainer.tracking import RETRY_EVERY_S, MlflowRuns, RunDescription

__all__ = ["ParentRun"]

logger = logging.getLogger(__name__)


class ParentRun:
    """While entered, a thread sees to it that the parent run is there and gets its artifacts."""

    def __init__(self, uri: str | None, experiment_id: str, description: RunDescription) -> None:
        self._uri = uri
        self._experiment_id = experiment_id
        self._description = description
        self._artifacts: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="parent-run", daemon=True)

    def __enter__(self) -> Self:
        if self._uri is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def artifacts(self, artifacts: Mapping[str, bytes]) -> None:
        """Put artifacts (path -> bytes) in line; those of the same path replace each other."""
        with self._lock:
            self._artifacts.update(artifacts)

    def _work(self) -> None:
        runs: MlflowRuns | None = None
        run_id: str | None = None
        while True:
            is_last_round = self._is_closing.is_set()
            try:
                runs = runs or MlflowRuns(str(self._uri), self._experiment_id)
                run_id = run_id or runs.ensure_parent(self._description)
                self._send(runs, run_id)
            except Exception as error:  # noqa: BLE001 - whatever MLflow answers, the experiment goes on
                logger.warning("MLflow has no parent run yet, trying again: %s", error)
            if is_last_round:
                return
            self._is_closing.wait(RETRY_EVERY_S)

    def _send(self, runs: MlflowRuns, run_id: str) -> None:
        while True:
            with self._lock:
                if not self._artifacts:
                    return
                path, data = next(iter(self._artifacts.items()))
            runs.log_artifact(run_id, path, data)
            with self._lock:
                if self._artifacts.get(path) is data:
                    del self._artifacts[path]
