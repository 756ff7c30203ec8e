"""When ASHA ranks a trial, by its own schedule."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["REDUCTION", "asha_rungs"]

REDUCTION: Final = 3  # of three trials at a rung one goes on (Li et al. 2020)
MAX_RUNGS: Final = 3


def asha_rungs(epochs: int) -> tuple[int, ...]:
    """Return the epochs after which a trial is ranked: a third, a ninth and a 27th of its own schedule."""
    rungs = {math.ceil(epochs / REDUCTION**power) for power in range(1, MAX_RUNGS + 1)}
    return tuple(sorted(rung for rung in rungs if rung < epochs))
