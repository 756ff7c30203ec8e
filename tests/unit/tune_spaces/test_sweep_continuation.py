"""A continued sweep begins with the trials it had."""

from __future__ import annotations

from typing import Any

import pytest

from tune_spaces.continuation import continued_request
from tune_spaces.plan import plan_sweep
from tune_spaces.spec import SweepSpec

REQUEST: dict[str, Any] = {
    "base": {"data": {"dataset": "digits"}},
    "space": {"loss.temperature": {"uniform": [0.1, 1.0]}},
    "search": "random",
    "num_samples": 2,
    "seeds": [0, 1],
}


def test_the_first_trials_stay_and_more_follow() -> None:
    longer = continued_request(REQUEST, max_trials=10)
    before, after = (plan_sweep(SweepSpec.model_validate(one), lambda _: 2000).trials for one in (REQUEST, longer))
    assert len(after) == 10
    assert after[:4] == before


def test_a_grid_has_no_more() -> None:
    grid = {**REQUEST, "space": {"epochs": {"choice": [1]}}, "search": "grid", "num_samples": 1}
    with pytest.raises(ValueError, match="clone"):
        continued_request(grid, max_trials=10)
