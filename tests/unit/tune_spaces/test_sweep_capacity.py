"""How much of a cluster trials take, and how many fit."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.spec import PretrainSpec
from tune_spaces.driver.capacity import is_alone, num_concurrent, trials_at_once
from tune_spaces.plan import possible_specs
from tune_spaces.spec import SweepSpec, complete


def spec(**scaling: Any) -> PretrainSpec:
    return PretrainSpec.model_validate({"data": {"dataset": "digits"}, "scaling": scaling})


@pytest.mark.parametrize(
    ("scaling", "cluster", "num"),
    [
        ({}, {"CPU": 4.0}, 4),
        ({"cpus_per_worker": 2}, {"CPU": 5.0}, 2),
        ({"num_workers": 2}, {"CPU": 4.0}, 1),
        ({"num_workers": 2}, {"CPU": 4.1}, 2),
        ({"num_workers": {"min": 2, "max": 4}}, {"CPU": 9.0}, 4),
        ({"gpus_per_worker": 1}, {"CPU": 16.0, "GPU": 3.0}, 3),
        ({"num_workers": 64}, {"CPU": 4.0}, 1),
    ],
)
def test_never_more_trials_run_at_once_than_fit(scaling: dict[str, Any], cluster: dict[str, float], num: int) -> None:
    assert num_concurrent([spec(**scaling)], cluster) == num


def test_the_largest_trial_decides() -> None:
    assert num_concurrent([spec(), spec(cpus_per_worker=4)], {"CPU": 8.0}) == 2


@pytest.mark.parametrize(
    ("allowed", "num_trials", "at_once"), [(None, 100, 8), (3, 100, 3), (50, 100, 8), (None, 2, 2)]
)
def test_a_sweep_runs_as_many_trials_as_fit_are_allowed_and_are_left(
    allowed: int | None, num_trials: int, at_once: int
) -> None:
    assert trials_at_once([spec()], {"CPU": 8.0}, allowed=allowed, num_trials=num_trials) == at_once


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_suggested_trials_are_counted_at_the_dearest_corner_of_their_space(search: str) -> None:
    space = {"scaling.cpus_per_worker": {"choice": [1, 4]}, "loss.temperature": {"uniform": [0.1, 1.0]}}
    asked = {"base": {"data": {"dataset": "digits"}}, "space": space, "search": search, "num_samples": 20}
    specs = possible_specs(complete(SweepSpec.model_validate(asked)))
    assert trials_at_once(specs, {"CPU": 8.0}, allowed=None, num_trials=20) == 2


def test_only_one_cpu_worker_needs_no_others() -> None:
    assert is_alone(spec())
    assert not is_alone(spec(num_workers=2))
    assert not is_alone(spec(gpus_per_worker=1))
    assert not is_alone(spec(num_workers={"min": 1, "max": 2}))
