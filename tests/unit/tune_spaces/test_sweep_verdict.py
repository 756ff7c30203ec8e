"""Verdicts: the stated rule on synthetic trial tables."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from trainer.trial_table import TrialRow
from tune_spaces.plan import PlannedTrial, plan_sweep, planned_trials
from tune_spaces.reports.estimate import estimate
from tune_spaces.reports.observations import Observations
from tune_spaces.reports.report import Report, build_report
from tune_spaces.reports.verdict import judge_claim, overall, sentence
from tune_spaces.spec import SweepSpec, complete
from tune_spaces.studies import Claim, Term

DATA = {"data": {"dataset": "digits"}}
SPACE = {"loss.temperature": {"choice": [0.1, 1.0]}}
CLAIM = Claim(
    text="0.1 does better than 1.0",
    terms=(
        Term(weight=1, where={"loss.temperature": "first"}),
        Term(weight=-1, where={"loss.temperature": "last"}),
    ),
)


def observations(values: dict[float, list[float]], *, seeds: list[int]) -> Observations:
    document: dict[str, Any] = {"base": {"data": {"dataset": "digits"}}, "space": SPACE, "seeds": seeds}
    sweep = complete(SweepSpec.model_validate(document))
    rows = [
        TrialRow(
            id=trial.id,
            state="succeeded",
            params=trial.params,
            metrics={"knn_accuracy": values[trial.params["loss.temperature"]][seeds.index(trial.seed)]},
        )
        for trial in plan_sweep(sweep, lambda _: 1000).trials
    ]
    return Observations(sweep, rows)


@pytest.mark.parametrize(
    ("first", "last", "verdict", "words"),
    [
        ([0.80, 0.82, 0.81], [0.70, 0.71, 0.72], "holds", "holds here"),
        ([0.70, 0.71, 0.72], [0.80, 0.82, 0.81], "does_not", "does not hold here"),
        ([0.70, 0.80, 0.75], [0.72, 0.74, 0.76], "cannot_tell", "can't be told from 3 seeds"),
        ([0.9], [0.1], "cannot_tell", "can't be told from 1 seed:"),
    ],
)
def test_a_claim_is_judged_by_its_interval(first: list[float], last: list[float], verdict: str, words: str) -> None:
    seeds = list(range(len(first)))
    result = judge_claim(CLAIM, observations({0.1: first, 1.0: last}, seeds=seeds), metric="knn_accuracy", mode="max")
    assert result.verdict == verdict
    assert words in sentence([result])


def test_pairing_by_seed_tells_what_unpaired_means_would_not() -> None:
    """Seeds differ by 0.2, the two sides by 0.01 under each."""
    found = observations({0.1: [0.51, 0.71, 0.912], 1.0: [0.50, 0.70, 0.90]}, seeds=[0, 1, 2])
    assert judge_claim(CLAIM, found, metric="knn_accuracy", mode="max").verdict == "holds"


def test_less_is_better_turns_the_claim_round() -> None:
    found = observations({0.1: [1.0, 1.1, 1.0], 1.0: [2.0, 2.1, 2.2]}, seeds=[0, 1, 2])
    assert judge_claim(CLAIM, found, metric="knn_accuracy", mode="min").verdict == "holds"


def test_settings_that_are_lacking_are_said() -> None:
    claim = Claim(text="0.2 is best", terms=(Term(weight=1, where={"loss.temperature": 0.2}), Term(weight=-1)))
    found = observations({0.1: [0.5, 0.6], 1.0: [0.4, 0.5]}, seeds=[0, 1])
    result = judge_claim(claim, found, metric="knn_accuracy", mode="max")
    assert result.difference is None
    assert "lacking" in sentence([result])


def test_one_part_that_does_not_hold_decides() -> None:
    good = observations({0.1: [0.80, 0.82, 0.81], 1.0: [0.70, 0.71, 0.72]}, seeds=[0, 1, 2])
    bad = observations({0.1: [0.70, 0.71, 0.72], 1.0: [0.80, 0.82, 0.81]}, seeds=[0, 1, 2])
    results = [judge_claim(CLAIM, found, metric="knn_accuracy", mode="max") for found in (good, bad)]
    assert overall(results) == "does_not"
    assert overall(results[:1]) == "holds"


def test_the_interval_is_students() -> None:
    """Mean 2, standard deviation 1, n 3: the quantile is 4.3027."""
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.num) == (2.0, 3)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-6)
    assert estimate([]) is None


@pytest.mark.parametrize("pairs", [([0.3, 0.5], 1 / 360), ([0.31, 0.52, 0.7], 1 / 360), ([4.0, 7.0], 0.1)])
def test_seeds_that_differ_by_the_same_give_no_certainty(pairs: tuple[list[float], float]) -> None:
    """Accuracies are multiples of 1 / images: equal differences are chance, and rounding is all their spread."""
    base, gain = pairs
    seeds = list(range(len(base)))
    found = observations({0.1: [value + gain for value in base], 1.0: base}, seeds=seeds)
    result = judge_claim(CLAIM, found, metric="knn_accuracy", mode="max")
    assert result.difference is not None
    assert (result.verdict, result.difference.low, result.difference.high) == ("cannot_tell", None, None)
    assert result.difference.mean == pytest.approx(gain)


def batches(value: Callable[[PlannedTrial], float], *, missing: Callable[[PlannedTrial], bool], **space: Any) -> Report:
    """Return the report of batch-size-epochs of which some trials did not end."""
    document = {"base": DATA, "study": "batch-size-epochs", "size": "small", **({"space": space} if space else {})}
    sweep = complete(SweepSpec.model_validate(document))
    rows = [
        TrialRow(
            id=trial.id,
            state="cancelled" if missing(trial) else "succeeded",
            params=trial.params,
            metrics={} if missing(trial) else {sweep.metric: value(trial)},
        )
        for trial in planned_trials(sweep)
    ]
    return build_report(sweep, rows, name="batches")


def large_is_worse(trial: PlannedTrial) -> float:
    """Epochs do nothing here."""
    return 0.6 - 0.2 * (trial.spec.batch_size == 2048) + random.Random(trial.id).gauss(0, 0.002)


LONGER, SHRINKS = "longer training does better", "the gap between batch sizes shrinks with longer training"


def test_trials_that_are_missing_do_not_pass_for_an_effect_of_another_axis() -> None:
    """Without the large batch's longest trials, the mean over the longest is one over small batches alone."""
    longest = batches(large_is_worse, missing=lambda trial: (trial.spec.batch_size, trial.spec.epochs) == (2048, 20))
    claims = {claim.text: claim for claim in longest.claims}
    assert (claims[LONGER].verdict, claims[LONGER].difference) == ("cannot_tell", None)
    assert claims["larger batches do better when training is short"].verdict == "does_not"


def test_a_seed_counts_where_all_of_a_claims_settings_ended_under_it() -> None:
    found = batches(large_is_worse, missing=lambda trial: trial.params == {"batch_size": 2048, "epochs": 20, "seed": 1})
    (longer,) = [claim for claim in found.claims if claim.text == LONGER]
    assert longer.verdict == "cannot_tell"
    assert longer.difference is not None
    assert longer.difference.num == 2
    assert abs(longer.difference.mean) < 0.01
    assert found.claims[2].verdict == "cannot_tell"


def test_the_last_value_is_that_of_the_space_and_not_the_last_that_ended() -> None:
    found = batches(large_is_worse, missing=lambda trial: trial.spec.batch_size == 2048)
    assert [claim.difference for claim in found.claims] == [None, None, None]
    assert "settings are lacking" in found.sentence


def test_a_space_of_one_value_has_nothing_to_contrast() -> None:
    space = {"batch_size": {"choice": [64]}, "epochs": {"choice": [1, 3]}}
    found = batches(lambda trial: 0.1 * trial.spec.epochs + 0.01 * trial.seed**2, missing=lambda _: False, **space)
    assert {claim.text: claim.difference for claim in found.claims} == {
        "larger batches do better when training is short": None,
        LONGER: found.claims[1].difference,
        SHRINKS: None,
    }
    assert found.claims[1].difference is not None
    assert "lacking to see whether larger batches" in found.sentence
