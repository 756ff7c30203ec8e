"""A continued sweep begins with the trials it had."""

from __future__ import annotations

from typing import Any

import pytest

from tune_spaces.continuation import continued_request
from tune_spaces.plan import plan_sweep
from tune_spaces.problems.sweep import sweep_problems
from tune_spaces.spec import SweepSpec, complete

REQUEST: dict[str, Any] = {
    "base": {"data": {"dataset": "digits"}},
    "space": {"loss.temperature": {"uniform": [0.1, 1.0]}},
    "search": "random",
    "num_samples": 2,
    "seeds": [0, 1],
}


def test_the_first_trials_stay_and_more_follow() -> None:
    longer = continued_request(REQUEST, max_trials=10, seeds=[0, 1])
    before, after = (plan_sweep(SweepSpec.model_validate(one), lambda _: 2000).trials for one in (REQUEST, longer))
    assert len(after) == 10
    assert after[:4] == before


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_the_seeds_stay_those_that_the_sweep_ran_with(search: str) -> None:
    """An earlier version completed this request to seeds 0, 1, 2; this one would to 5, 6, 7."""
    base = {"data": {"dataset": "digits"}, "seed": 5}
    asked = {"base": base, "study": "temperature", "size": "small", "search": search, "num_samples": 2}
    longer = SweepSpec.model_validate(continued_request(asked, max_trials=9, seeds=[0, 1, 2]))
    assert (complete(longer).seeds, longer.num_samples) == ((0, 1, 2), 3)


def test_an_axis_of_seeds_stays_the_only_place_of_them() -> None:
    asked = {**REQUEST, "space": {"seed": {"randint": [0, 9]}}}
    del asked["seeds"]
    longer = SweepSpec.model_validate(continued_request(asked, max_trials=4, seeds=[0]))
    assert sweep_problems(longer) == []
    assert longer.num_samples == 4


def test_a_grid_has_no_more() -> None:
    grid = {**REQUEST, "space": {"epochs": {"choice": [1]}}, "search": "grid", "num_samples": 1}
    with pytest.raises(ValueError, match="clone"):
        continued_request(grid, max_trials=10, seeds=[0, 1])
