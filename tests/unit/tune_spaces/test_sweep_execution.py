"""How much of a cluster trials take, and how many fit."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from trainer.spec import PretrainSpec
from tune_spaces.execution import _Narrator, _Suppliant, num_concurrent, trial_resources


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
    assert num_concurrent(trial_resources(spec(**scaling)), cluster) == num


def test_what_tune_keeps_of_the_driver_is_nothing() -> None:
    def never(_: Any = None) -> Any:
        raise AssertionError

    for part in (_Suppliant(never, never, never), _Narrator(never, never)):  # type: ignore[arg-type]
        assert vars(pickle.loads(pickle.dumps(part))) == {}  # noqa: S301 - our own bytes
