"""Ids that sort by the time they were made."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["ExperimentIds", "new_experiment_id"]

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, in byte order
_NUM_DIGITS: Final = 26
_RANDOM_BITS: Final = 80
_STEP_BITS: Final = 64


class ExperimentIds:
    """A source of ids `exp_` + ULID in lower case (48 bits of milliseconds, 80 of chance).

    Each id is greater than the ones before it, also where the clock stands still or moves back:
    then it counts on from the last one by a random step, so that two processes with the same past
    (a fork) still differ. Safe to call from several threads.
    """

    def __init__(self, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._last = 0

    def __call__(self) -> str:
        """Return the next id: 30 characters."""
        milliseconds = self._clock_ns() // 1_000_000
        fresh = milliseconds << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
        with self._lock:
            self._last = fresh if fresh > self._last else self._last + 1 + secrets.randbits(_STEP_BITS)
            return "exp_" + _base32(self._last)


def _base32(number: int) -> str:
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(5 * (_NUM_DIGITS - 1), -1, -5))


new_experiment_id: Final = ExperimentIds()
