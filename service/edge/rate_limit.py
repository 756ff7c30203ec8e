"""How often one token may call."""

from __future__ import annotations

import math
import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from service.edge.problems import Problem
from service.errors import SettingsError

__all__ = ["RateLimit"]


class RateLimit:
    """A sliding window for each caller, in this process; off without a limit."""

    def __init__(self, limit: str | None) -> None:
        """Read a limit such as `100/minute`. Raises SettingsError."""
        try:
            self._limit: RateLimitItem | None = parse(limit) if limit else None
        except ValueError as error:
            raise SettingsError(f"SIMCLR_RATE_LIMIT={limit}: write it as 100/minute") from error
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())

    def spend(self, caller: str) -> None:
        """Count one call. Raises Problem 429 where the caller has none left."""
        if self._limit is None or self._windows.hit(self._limit, caller):
            return
        reset_at = self._windows.get_window_stats(self._limit, caller).reset_time
        wait_s = max(1, math.ceil(reset_at - time.time()))
        raise Problem(
            429,
            "rate_limited",
            f"more than {self._limit}; come back in {wait_s} s",
            headers={"Retry-After": str(wait_s)},
        )
