"""Stopping early: decisions on recorded epochs alone."""

from __future__ import annotations

import math

from tune_spaces.driver.scheduler import Record, should_stop
from tune_spaces.rungs import asha_rungs


def asha(cohort: dict[str, list[Record]], trial: str, *, epochs: int = 9) -> bool:
    return should_stop("asha", trial=trial, epochs=epochs, cohort=cohort, mode="max")


def test_rungs_are_at_thirds_of_the_trials_own_schedule() -> None:
    assert asha_rungs(9) == (1, 3)
    assert asha_rungs(27) == (1, 3, 9)
    assert asha_rungs(100) == (4, 12, 34)
    assert asha_rungs(1) == ()


def test_the_first_at_a_rung_goes_on_and_a_worse_second_stops() -> None:
    assert not asha({"a": [(1, 0.5)]}, "a")
    assert asha({"a": [(1, 0.5)], "b": [(1, 0.4)]}, "b")
    assert not asha({"a": [(1, 0.5)], "b": [(1, 0.6)]}, "b")


def test_the_best_third_goes_on() -> None:
    cohort = {f"t{index}": [(1, index / 10)] for index in range(6)}
    assert [asha(cohort, trial) for trial in cohort] == [True, True, True, True, False, False]


def test_between_rungs_none_is_stopped() -> None:
    assert not asha({"a": [(1, 0.9), (2, 0.9)], "b": [(1, 0.8), (2, 0.1)]}, "b")


def test_a_rung_is_judged_by_the_first_value_at_or_behind_it() -> None:
    cohort = {"a": [(2, 0.9), (4, 0.9)], "b": [(2, 0.95), (4, 0.1)]}
    assert asha(cohort, "b")
    assert not asha({"a": [(2, 0.1), (4, 0.9)], "b": [(2, 0.2)]}, "b"), "what came behind the rung does not count"


def test_what_is_not_finite_is_worst_and_less_can_be_better() -> None:
    assert asha({"a": [(1, 0.1)], "b": [(1, math.nan)]}, "b")
    cohort = {"a": [(1, 2.0)], "b": [(1, 1.0)]}
    assert not should_stop("asha", trial="b", epochs=9, cohort=cohort, mode="min")
    assert should_stop("asha", trial="a", epochs=9, cohort=cohort, mode="min")


def test_median_waits_for_three_others_and_compares_with_their_averages() -> None:
    others: dict[str, list[Record]] = {
        "a": [(1, 0.5), (2, 0.7)],
        "b": [(1, 0.5), (2, 0.6)],
        "c": [(1, 0.2), (2, 0.2)],
    }

    def median(records: list[Record], cohort: dict[str, list[Record]]) -> bool:
        return should_stop("median", trial="t", epochs=9, cohort={**cohort, "t": records}, mode="max")

    assert not median([(1, 0.1), (2, 0.1)], {"a": others["a"], "b": others["b"]})
    assert median([(1, 0.1), (2, 0.54)], others)
    assert not median([(1, 0.6), (2, 0.1)], others), "its best so far counts"


def test_fifo_stops_none() -> None:
    assert not should_stop("fifo", trial="b", epochs=9, cohort={"a": [(1, 0.5)], "b": [(1, 0.0)]}, mode="max")
