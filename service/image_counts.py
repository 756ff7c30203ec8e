"""How many images data sets have to train on: counted beside the requests that ask, which wait for a while only.

To count exactly a data set is decoded, which takes minutes where it is photos. A request that waited
for it would be given up by its client, and those that come after it would wait in as many threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Final

from service.storage_threads import StorageThreads

__all__ = ["ImageCounts"]

COUNT_S: Final = 8.0  # from its beginning on, those who ask wait for a count
BESIDE_S: Final = 0.5  # and for one that begins while another takes that long: a sweep may ask for many, one by one
MOST_REMEMBERED: Final = 256
NUM_THREADS: Final = 4


class ImageCounts:
    """The counts that were begun, by what is counted. Safe to call from several threads."""

    def __init__(self) -> None:
        """Count nothing yet."""
        self._threads = StorageThreads(number=NUM_THREADS)
        self._lock = threading.Lock()
        self._begun: dict[Hashable, tuple[Future[int], float]] = {}  # the oldest first

    def get(self, key: Hashable, count: Callable[[], int]) -> int | None:
        """Return `count()`, called once for a `key`; None while it takes longer than those who ask wait.

        What it raises is raised here, and not remembered.
        """
        with self._lock:
            if key not in self._begun:
                if len(self._begun) >= MOST_REMEMBERED:
                    del self._begun[next(iter(self._begun))]
                self._begun[key] = (self._threads.begin(count), time.monotonic())
            counting, began_s = self._begun[key]
            first_s = min((since_s for other, since_s in self._begun.values() if not other.done()), default=began_s)
        try:
            until_s = max(first_s + COUNT_S, began_s + min(BESIDE_S, COUNT_S))
            return counting.result(timeout=max(0.0, until_s - time.monotonic()))
        except TimeoutError as error:
            if not counting.done() or counting.exception() is not error:
                return None  # it goes on or ended just now, and is told when it is asked for again
            self._forget(key, counting)
            raise
        except BaseException:
            self._forget(key, counting)
            raise

    def _forget(self, key: Hashable, counting: Future[int]) -> None:
        with self._lock:
            if key in self._begun and self._begun[key][0] is counting:
                del self._begun[key]
