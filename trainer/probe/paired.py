"""Compare two classifiers on the same images (McNemar 1947): small sets are noisy, pairs less so."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, fsum

import numpy as np
from numpy.typing import NDArray

__all__ = ["McNemar", "mcnemar"]


@dataclass(frozen=True)
class McNemar:
    """On how many images only one of two classifiers is right, and how surprising that would be of equals."""

    num_only_first: int
    num_only_second: int
    p_exact: float  # two-sided binomial
    p_mid: float  # less conservative: half the probability of what was seen (Fagerland et al. 2013)


def mcnemar(first: NDArray[np.int64], second: NDArray[np.int64], *, labels: NDArray[np.int64]) -> McNemar:
    """Return the paired comparison of two vectors of predictions, (M,) each.

    Raises:
        ValueError: If the three are not of one length.
    """
    if not len(first) == len(second) == len(labels):
        raise ValueError(f"{len(first)} and {len(second)} predictions for {len(labels)} labels")
    only_first = int(((first == labels) & (second != labels)).sum())
    only_second = int(((first != labels) & (second == labels)).sum())
    seen, tail = _fair(only_first + only_second, fewer=min(only_first, only_second))
    two_tails = 2 * tail
    return McNemar(only_first, only_second, p_exact=min(1.0, two_tails), p_mid=min(1.0, two_tails - seen))


def _fair(num_pairs: int, *, fewer: int) -> tuple[float, float]:
    """Return P(X = fewer) and P(X <= fewer) of X ~ Binomial(num_pairs, 1/2), fewer <= num_pairs / 2.

    To a relative 1e-12, in time O(num_pairs): from the middle down by the ratios of neighbours,
    C(n, k - 1) / C(n, k) = k / (n - k + 1), where the terms themselves do not fit a float.
    """
    middle = num_pairs // 2
    # C(2m, m) / 4^m is the product of 1 - 1 / 2j over j = 1..m; for n = 2m - 1 the middle term is the same
    to_middle = np.log1p(-0.5 / np.arange(1, num_pairs - middle + 1))
    counts = np.arange(middle, 0, -1)
    others = num_pairs - counts + 1
    down_to_fewer = np.log1p((counts - others) / others)[: middle - fewer]
    seen = exp(fsum(to_middle) + fsum(down_to_fewer))
    below = np.cumprod((counts / others)[middle - fewer :])
    return seen, seen * (1 + fsum(below))
