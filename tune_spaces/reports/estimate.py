"""A mean over seeds and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

__all__ = ["CONFIDENCE", "Estimate", "estimate"]

CONFIDENCE: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The mean of a few values with its confidence interval by Student's t; no interval of one value."""

    mean: float
    num: int
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of independent values and its 95 % interval, None without a value."""
    if not values:
        return None
    mean, num = fmean(values), len(values)
    if num == 1:
        return Estimate(mean=mean, num=num)
    margin = _t_quantile(num - 1) * stdev(values) / math.sqrt(num)
    return Estimate(mean=mean, num=num, low=mean - margin, high=mean + margin)


def _t_quantile(degrees: int) -> float:
    from scipy.special import stdtrit  # half a second to import, and only a report needs it

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
