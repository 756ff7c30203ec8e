"""The budget of a sweep: what its trials have cost in all attempts, against its limits.

    spent.json                   seconds of the drivers, images by trial, and the limit that was reached, if one was
    trials/{trial}/images.json   how many images the trial has drawn, written by itself at the end of each epoch

The driver alone adds up and decides; a trial reads the decision at the end of its epoch, in
whatever process it runs, and ends there. Epochs that a restart repeats are counted again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from trainer.context import TrialContext, experiment_key, trial_key
from trainer.epoch_report import EpochReport, OnEpoch
from trainer.storage import BlobMissing, Storage, open_storage
from tune_spaces.spec import SweepLimits

__all__ = ["Budget", "EpochWatch"]

logger = logging.getLogger(__name__)

SPENT: Final = "spent.json"
IMAGES: Final = "images.json"
LOOK_EVERY_S: Final = 2.0

# The limit is the service's too, and its clock started before this driver: what is left of it
# is for the epochs that are under way, and for the report.
RESERVED_RATIO: Final = 0.05
RESERVED_MOST_S: Final = 60.0


class Budget:
    """Adds up on its own thread while entered; `reached` says which limit ended the sweep."""

    def __init__(
        self,
        limits: SweepLimits,
        storage: Storage,
        experiment_id: str,
        *,
        running: Callable[[], list[str]],
        is_owner: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._storage = storage
        self._experiment_id = experiment_id
        self._running = running
        self._is_owner = is_owner
        self._clock = clock
        self._started_s = clock()
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._look_regularly, name="budget", daemon=True)
        spent = _read(storage, experiment_key(experiment_id, SPENT)) or {}
        self._earlier_s = float(spent.get("wall_time_s", 0.0))
        self._images: dict[str, int] = spent.get("images", {})
        self.reached: str | None = spent.get("reached")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed.set()
        self._thread.join()
        self.look()

    @property
    def wall_time_s(self) -> float:
        """Return how long the drivers of all attempts have run."""
        return self._earlier_s + self._clock() - self._started_s

    @property
    def images(self) -> int:
        """Return how many images all trials have drawn, as far as epochs were reported."""
        return sum(self._images.values())

    def look(self) -> None:
        """Add up what was spent, decide, and write both down; a storage that is away is asked again."""
        with self._lock:
            try:
                if self._limits.max_images is not None:
                    for trial in self._running():
                        self._images[trial] = _read(self._storage, self._key(trial)) or 0
                self.reached = self.reached or self._judge()
                if self._is_owner():
                    self._write()
            except OSError as error:
                logger.warning("what the sweep has spent was not written: %s", error)

    def count(self, trial: str, *, unreported: int) -> None:
        """Count a trial that has ended, since the last look too.

        Args:
            trial: Its id.
            unreported: Images of its last epoch, if it ran to its end: it reports the others only.
        """
        if self._limits.max_images is not None:
            with self._lock:
                self._images[trial] = (_read(self._storage, self._key(trial)) or 0) + unreported

    def _judge(self) -> str | None:
        limits = self._limits
        reserved_s = min(RESERVED_MOST_S, RESERVED_RATIO * limits.wall_time_s)
        if self.wall_time_s >= limits.wall_time_s - reserved_s:
            return f"limits.wall_time_s = {limits.wall_time_s} was used up"
        if limits.max_images is not None and self.images >= limits.max_images:
            return f"limits.max_images = {limits.max_images} was reached with {self.images} images"
        return None

    def _write(self) -> None:
        document = {"wall_time_s": self.wall_time_s, "images": self._images, "reached": self.reached}
        self._storage.write(experiment_key(self._experiment_id, SPENT), json.dumps(document).encode())

    def _key(self, trial: str) -> str:
        return trial_key(self._experiment_id, trial, IMAGES)

    def _look_regularly(self) -> None:
        while not self._is_closed.wait(LOOK_EVERY_S):
            self.look()


@dataclass(frozen=True, kw_only=True)
class EpochWatch:
    """What a trial calls at the end of an epoch: counts it, and says whether to stop; it pickles."""

    context: TrialContext
    batch_size: int
    counts_images: bool
    referee: OnEpoch | None  # that may stop this trial for another reason

    def __call__(self, report: EpochReport) -> bool:
        """Return whether the sweep's budget, or its scheduler, ends the trial here."""
        storage = open_storage(self.context.storage)
        try:
            if self.counts_images:
                self._count(storage, report)
            spent = _read(storage, experiment_key(self.context.experiment_id, SPENT)) or {}
        except OSError as error:
            logger.warning("the epoch was not counted: %s", error)
            spent = {}
        is_stopped = self.referee(report) if self.referee is not None else False
        return is_stopped or bool(spent.get("reached"))

    def _count(self, storage: Storage, report: EpochReport) -> None:
        key = self.context.key(IMAGES)
        images = report.step // report.epoch * self.batch_size
        storage.write(key, json.dumps((_read(storage, key) or 0) + images).encode())


def _read(storage: Storage, key: str) -> Any:
    try:
        return json.loads(storage.read(key))
    except BlobMissing:
        return None
