"""The learning rate of each update: linear warm-up, then half a cosine (SimCLR, section 2.2)."""

from __future__ import annotations

import math

__all__ = ["learning_rate"]


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of update `step` (SimCLR, section 2.2).

    Update 0 already learns: its rate is `peak / warmup_steps`, and update `warmup_steps - 1`
    reaches `peak`. From update `warmup_steps`, which has `peak` too, a cosine falls to 0 at
    `total_steps`, one past the last update. Without warm-up the cosine starts at update 0. If
    the warm-up is as long as the run, there is no cosine.

    Args:
        step: Updates done before this one, from 0.
        peak: The highest rate, >= 0.
        warmup_steps: Updates of warm-up, >= 0.
        total_steps: Updates of the whole run, >= 1; at and beyond it the rate is 0.

    Raises:
        ValueError: If `step` or `warmup_steps` is negative, or `total_steps` is below 1.
    """
    if step < 0 or warmup_steps < 0 or total_steps < 1:
        raise ValueError(
            f"need step >= 0, warmup_steps >= 0 and total_steps >= 1, got {step}, {warmup_steps} and {total_steps}"
        )
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
