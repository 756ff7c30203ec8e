"""How much of a cluster trials take, and how many fit."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.spec import PretrainSpec
from tune_spaces.driver.capacity import is_alone, num_concurrent


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


def test_only_one_cpu_worker_needs_no_others() -> None:
    assert is_alone(spec())
    assert not is_alone(spec(num_workers=2))
    assert not is_alone(spec(gpus_per_worker=1))
    assert not is_alone(spec(num_workers={"min": 1, "max": 2}))
