"""Completing a sweep: study, base and defaults, each where the user left room."""

from __future__ import annotations

from typing import Any

import pytest

from tune_spaces.spec import SweepSpec, complete, resolve
from tune_spaces.studies import SIZES, list_studies

DATA = {"data": {"dataset": "digits"}}


def sweep(**fields: Any) -> SweepSpec:
    return SweepSpec.model_validate({"base": DATA, **fields})


@pytest.mark.parametrize("name", [study.name for study in list_studies()])
@pytest.mark.parametrize("size", SIZES)
def test_completing_a_complete_sweep_changes_nothing(name: str, size: str) -> None:
    resolved = resolve(sweep(study=name, size=size))
    assert resolve(SweepSpec.model_validate(resolved)) == resolved


def test_what_the_user_says_replaces_what_the_study_says() -> None:
    space = {"loss.temperature": {"choice": [0.2, 0.4]}}
    whole = complete(sweep(study="temperature", space=space, metric="knn_accuracy", seeds=[7], size="smoke"))
    assert list(whole.axes()) == ["loss.temperature"]
    assert (whole.metric, whole.seeds) == ("knn_accuracy", (7,))


def test_the_base_of_the_user_goes_over_that_of_the_study_part_by_part() -> None:
    base = {**DATA, "encoder": {"width": 2}}
    spec = complete(SweepSpec(base=base, study="temperature", size="smoke")).base_spec()
    assert (spec.encoder.name, spec.encoder.width) == ("resnet8", 2)


def test_the_seed_of_the_base_is_the_seed_of_the_trials_unless_seeds_are_given() -> None:
    space = {"epochs": {"choice": [1]}}
    assert complete(SweepSpec.model_validate({"base": {**DATA, "seed": 5}, "space": space})).seeds == (5,)


def test_warm_up_stays_open_so_that_each_trial_derives_its_own() -> None:
    assert resolve(sweep(space={"epochs": {"choice": [10, 100]}}))["base"]["optim"]["warmup_epochs"] is None


def test_a_scheduler_measures_every_epoch_unless_the_base_says_otherwise() -> None:
    space = {"epochs": {"choice": [9]}}
    assert complete(sweep(space=space, scheduler="asha")).base_spec().evaluation.knn_every_epochs == 1
    base = {**DATA, "evaluation": {"knn_every_epochs": 3}}
    assert complete(sweep(base=base, space=space, scheduler="asha")).base_spec().evaluation.knn_every_epochs == 3


@pytest.mark.parametrize(("size", "every"), [("smoke", 1), ("small", 1), ("paper", 10)])
def test_a_scheduler_measures_the_trials_of_a_study_while_they_run(size: str, every: int) -> None:
    study = {"study": "temperature", "size": size, "scheduler": "asha"}
    assert complete(sweep(**study)).base_spec().evaluation.knn_every_epochs == every
    base = {**DATA, "evaluation": {"knn_every_epochs": 3}}
    assert complete(sweep(base=base, **study)).base_spec().evaluation.knn_every_epochs == 3


def test_the_seeds_of_a_study_count_from_that_of_the_base() -> None:
    study = {"study": "temperature", "size": "small"}
    assert complete(sweep(**study)).seeds == (0, 1, 2)
    assert complete(sweep(base={**DATA, "seed": 5}, **study)).seeds == (5, 6, 7)
    assert complete(sweep(base={**DATA, "seed": 2**63 - 1}, **study)).seeds == (2**63 - 1, 0, 1)
    assert complete(sweep(base={**DATA, "seed": 5}, seeds=[7], **study)).seeds == (7,)


def test_a_seed_axis_is_run_once_at_each_of_its_values() -> None:
    space = {"seed": {"choice": [5, 6]}}
    assert len(complete(sweep(study="temperature", size="small", space=space)).seeds) == 1
    assert len(complete(sweep(space=space)).seeds) == 1


def test_a_study_brings_the_limit_it_needs_and_the_users_own_stands() -> None:
    assert complete(sweep(study="augmentation-pairs", size="paper")).limits.max_trials == 49
    assert complete(sweep(study="augmentation-pairs", size="paper", limits={"max_trials": 5})).limits.max_trials == 5
