"""Supplies: the same trials under the same ids, whatever had ended before."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.trial_table import TrialRow
from tune_spaces.driver.supply import TrialSupply, open_supply
from tune_spaces.plan import PlannedTrial
from tune_spaces.spec import SweepSpec, complete

SPACE: dict[str, Any] = {
    "loss.kind": {"choice": ["nt_xent", "margin"]},
    "loss.temperature": {"loguniform": [0.05, 1.0], "when": {"loss.kind": ["nt_xent"]}},
    "views.operations": {"choice": [[{"op": "sobel"}], [{"op": "cutout"}]]},
    "epochs": {"randint": [1, 9]},
}


def sweep(**fields: Any) -> SweepSpec:
    return complete(SweepSpec.model_validate({"base": {"data": {"dataset": "digits"}}, "space": SPACE, **fields}))


def drain(supply: TrialSupply, values: dict[str, float], most: int = 100) -> list[PlannedTrial]:
    taken: list[PlannedTrial] = []
    while len(taken) < most and (trial := supply.take()) is not None:
        taken.append(trial)
        values[trial.id] = trial.spec.epochs / 10
        supply.tell(trial.id, values[trial.id])
    return taken


def rows_of(trials: list[PlannedTrial], values: dict[str, float]) -> dict[str, TrialRow]:
    return {
        trial.id: TrialRow(
            id=trial.id,
            state="succeeded",
            params=trial.params,
            best={"metric": "knn_accuracy", "value": values[trial.id]},
        )
        for trial in trials
    }


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_what_has_ended_is_not_given_again(search: str) -> None:
    asked = sweep(search=search, num_samples=6, seeds=[0, 1])
    values: dict[str, float] = {}
    before = drain(open_supply(asked, {}, frozenset()), values, most=5)
    done = frozenset(trial.id for trial in before[:4])
    rows = rows_of(before, values)
    after = drain(open_supply(asked, rows, done), {})
    assert [trial.id for trial in after] == [f"t{index:04d}" for index in range(4, 12)]
    assert after[0] == before[4], "what was left running comes again as it was"


def test_suggestions_before_a_restart_are_kept_and_a_known_space_is_searched_on() -> None:
    asked = sweep(search="optuna", num_samples=8)
    values: dict[str, float] = {}
    before = drain(open_supply(asked, {}, frozenset()), values, most=4)
    supply = open_supply(asked, rows_of(before, values), frozenset(values))
    assert list(supply.known()) == before
    assert len(drain(supply, {})) == 4


def test_suggestions_are_a_function_of_the_seed_and_of_what_came_of_them() -> None:
    asked = sweep(search="optuna", num_samples=15)
    first, second = (drain(open_supply(asked, {}, frozenset()), {}) for _ in range(2))
    assert [trial.params for trial in first] == [trial.params for trial in second]


def test_a_point_without_a_value_is_set_aside() -> None:
    supply = open_supply(sweep(search="optuna", num_samples=2), {}, frozenset())
    trial = supply.take()
    assert trial is not None
    supply.tell(trial.id, None)
    assert supply.take() is not None


def test_a_table_with_gaps_gives_each_point_its_own_trials() -> None:
    asked = sweep(search="optuna", num_samples=3, seeds=[0, 1])
    values: dict[str, float] = {}
    before = drain(open_supply(asked, {}, frozenset()), values)
    rows = rows_of([before[0], before[5]], values)
    after = drain(open_supply(asked, rows, frozenset(rows)), {})
    assert [trial.id for trial in after] == ["t0001", "t0002", "t0003", "t0004"]
    assert [after[0], after[3]] == [before[1], before[4]]
