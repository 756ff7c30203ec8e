"""The parent run of an experiment in MLflow: created by its driver, however late MLflow answers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Self

from trainer.model_registry import BestEncoder, register_encoder
from trainer.tracking import DRAIN_S, RETRY_EVERY_S, MlflowRuns, RunDescription

__all__ = ["ParentRun"]

logger = logging.getLogger(__name__)

Send = Callable[[MlflowRuns, str], None]  # with the parent run's id


class ParentRun:
    """While entered, a thread sees to it that the parent run is there and gets what it is to have."""

    def __init__(self, uri: str | None, experiment_id: str, description: RunDescription) -> None:
        self._uri = uri
        self._experiment_id = experiment_id
        self._description = description
        self._unsent: dict[str, Send] = {}
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._give_up_at_s = float("inf")
        self._thread = threading.Thread(target=self._work, name="parent-run", daemon=True)

    def __enter__(self) -> Self:
        if self._uri is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give MLflow as long to take the rest as a finished trial does; after an error, one last chance."""
        patience_s = DRAIN_S if kind is None else 0.0
        self._give_up_at_s = time.monotonic() + patience_s
        self._is_closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=patience_s + 30)

    def artifacts(self, artifacts: Mapping[str, bytes]) -> None:
        """Put artifacts (path -> bytes) in line; those of the same path replace each other."""
        for path, data in artifacts.items():
            self._put(path, partial(_log_artifact, path=path, data=data))

    def best_encoder(self, encoder: BestEncoder) -> None:
        """Put an encoder in line to be registered as the experiment's."""
        self._put("the best encoder", partial(_register, encoder=encoder))

    def _put(self, name: str, send: Send) -> None:
        with self._lock:
            self._unsent[name] = send

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
        while True:
            with self._lock:
                if not self._unsent:
                    return
                name, send = next(iter(self._unsent.items()))
            send(runs, run_id)
            with self._lock:
                if self._unsent.get(name) is send:
                    del self._unsent[name]


def _log_artifact(runs: MlflowRuns, run_id: str, *, path: str, data: bytes) -> None:
    runs.log_artifact(run_id, path, data)


def _register(runs: MlflowRuns, _: str, *, encoder: BestEncoder) -> None:
    register_encoder(runs.client, encoder)
