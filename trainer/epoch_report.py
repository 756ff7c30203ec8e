"""What a scheduler is told of a trial while it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["EpochReport", "OnEpoch"]


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """The state of a trial at the end of an epoch."""

    epoch: int  # 1 after the first
    step: int
    metrics: dict[str, float]  # of the last step, and what was measured at the end of the epoch


OnEpoch = Callable[[EpochReport], bool]  # returns whether to stop early
