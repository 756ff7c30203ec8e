"""Stopping a trial early, as a decision on what the trials have shown so far.

A decision is a function of the epochs recorded so far alone; as more come in it may become another
one, so the referee keeps each with the epoch that it was about. A trial is compared with its cohort
only: trials of as many epochs, whose learning rates are at the same place of the same schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Final, Literal

from tune_spaces.rungs import REDUCTION, asha_rungs

__all__ = ["Record", "should_stop"]

MIN_OTHERS: Final = 3  # a median of fewer says little (Golovin et al. 2017 leave it open)

Record = tuple[int, float]  # (epoch from 1, value), ascending


def should_stop(
    scheduler: Literal["fifo", "asha", "median"],
    *,
    trial: str,
    epochs: int,
    cohort: Mapping[str, Sequence[Record]],
    mode: Literal["max", "min"],
) -> bool:
    """Return whether a trial should stop after the last epoch it has recorded.

    Args:
        scheduler: The rule; `fifo` stops none.
        trial: Whose last epoch is judged.
        epochs: How many epochs it is to train.
        cohort: Trial id -> its records, the trial's own among them.
        mode: Whether more or less is better; what is not finite is worst.
    """
    if scheduler == "fifo":
        return False
    better_is_more = {
        other: [(epoch, _comparable(value, mode)) for epoch, value in records] for other, records in cohort.items()
    }
    decide = _asha if scheduler == "asha" else _median
    return decide(trial, epochs, better_is_more)


def _asha(trial: str, epochs: int, cohort: Mapping[str, Sequence[Record]]) -> bool:
    """Stop a trial that is not among the best third of those that reached its rung so far."""
    own = cohort[trial]
    newest = own[-1][0]
    before = own[-2][0] if len(own) > 1 else 0
    for rung in asha_rungs(epochs):
        if before < rung <= newest:
            values = {other: value for other, records in cohort.items() if (value := _at(rung, records)) is not None}
            num_better = sum(value > values[trial] for value in values.values())
            if num_better >= max(1, len(values) // REDUCTION):
                return True
    return False


def _at(rung: int, records: Sequence[Record]) -> float | None:
    """Return the first value measured at or behind a rung."""
    return next((value for epoch, value in records if epoch >= rung), None)


def _median(trial: str, epochs: int, cohort: Mapping[str, Sequence[Record]]) -> bool:
    """Stop a trial whose best is below the median of the others' averages up to the same epoch."""
    newest = cohort[trial][-1][0]
    if newest < asha_rungs(epochs)[0] if asha_rungs(epochs) else True:
        return False
    averages = [
        fmean(value for epoch, value in records if epoch <= newest)
        for other, records in cohort.items()
        if other != trial and records and records[-1][0] >= newest and records[0][0] <= newest
    ]
    return len(averages) >= MIN_OTHERS and max(value for _, value in cohort[trial]) < median(averages)


def _comparable(value: float, mode: Literal["max", "min"]) -> float:
    if not math.isfinite(value):
        return -math.inf
    return value if mode == "max" else -value
