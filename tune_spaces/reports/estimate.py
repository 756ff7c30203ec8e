"""A mean over seeds and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

__all__ = ["CONFIDENCE", "ROUNDING", "Estimate", "estimate"]

CONFIDENCE: Final = 0.95
ROUNDING: Final = 1e-9  # of floats that are equal but for their arithmetic, as a share of values above 1


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The mean of a few values with its confidence interval by Student's t, where they have a spread."""

    mean: float
    num: int
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate | None:
    """Return the mean of independent values and its interval, None without a value.

    Equal values have no interval, as one alone has none: an accuracy is a multiple of 1 / images,
    so a few of them agree by chance, and an interval of no width would call that certain.
    """
    if not values:
        return None
    mean, num = fmean(values), len(values)
    spread = stdev(values) if num > 1 else 0.0
    if spread <= ROUNDING * max(1.0, abs(mean)):
        return Estimate(mean=mean, num=num)
    margin = _t_quantile(num - 1, confidence) * spread / math.sqrt(num)
    return Estimate(mean=mean, num=num, low=mean - margin, high=mean + margin)


def _t_quantile(degrees: int, confidence: float) -> float:
    from scipy.special import stdtrit  # half a second to import, and only a report needs it

    return float(stdtrit(degrees, (1 + confidence) / 2))
