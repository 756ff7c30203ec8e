"""Compare two classifiers on the same images (McNemar 1947): small sets are noisy, pairs less so."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import comb

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
    num_pairs, fewer = only_first + only_second, min(only_first, only_second)
    two_tails = float(Fraction(2 * sum(comb(num_pairs, count) for count in range(fewer + 1)), 2**num_pairs))
    seen = float(Fraction(comb(num_pairs, fewer), 2**num_pairs))
    return McNemar(only_first, only_second, p_exact=min(1.0, two_tails), p_mid=min(1.0, two_tails - seen))
