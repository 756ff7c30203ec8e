"""Every sweep that can't work is refused with its place, and one that can is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from trainer.spec import PretrainSpec, SpecProblem
from tune_spaces.problems.sweep import sweep_problems
from tune_spaces.spec import SweepSpec
from tune_spaces.studies import list_studies

BASE: dict[str, Any] = {"data": {"dataset": "digits"}, "batch_size": 64, "epochs": 4}
SPACE: dict[str, Any] = {"loss.temperature": {"choice": [0.1, 0.5]}}


def found(
    *,
    has_labels: bool | None = None,
    largest_batch: int | None = None,
    base: dict[str, Any] | None = None,
    **fields: Any,
) -> dict[str, str]:
    document = {"base": {**BASE, **(base or {})}, "space": SPACE, **fields}
    spec = SweepSpec.model_validate({key: value for key, value in document.items() if value is not None})
    return {
        problem.pointer: problem.code
        for problem in sweep_problems(
            spec, has_labels=has_labels, here=None if largest_batch is None else batches_up_to(largest_batch)
        )
    }


def batches_up_to(largest: int) -> Callable[[PretrainSpec], list[SpecProblem]]:
    """Return a place where batches fit up to a size."""
    problem = SpecProblem(pointer="/batch_size", code="too_large", detail="too large")
    return lambda spec: [problem] if spec.batch_size > largest else []


def test_a_sound_sweep_has_none() -> None:
    assert found(has_labels=True, largest_batch=1000, seeds=[0, 1]) == {}


@pytest.mark.parametrize(
    ("space", "pointer", "code"),
    [
        ({"loss.temperatur": {"choice": [1.0]}}, "/space/loss.temperatur", "path_unknown"),
        ({"loss.temperature": {"choice": [0.1, -1.0]}}, "/space/loss.temperature/choice/1", "value_refused"),
        ({"loss.temperature": {"choice": [0.1, "hot"]}}, "/space/loss.temperature/choice/1", "value_refused"),
        ({"loss.temperature": {"choice": [0.1, float("nan")]}}, "/space/loss.temperature/choice/1", "value_refused"),
        ({"loss.temperature": {"choice": [1, 1.0]}}, "/space/loss.temperature/choice/1", "duplicate"),
        ({"limits.max_attempts": {"choice": [1]}}, "/space/limits.max_attempts", "path_not_swept"),
        ({"loss": {"choice": [{}]}, "loss.margin": {"choice": [1.0]}}, "/space/loss.margin", "axes_contradict"),
        (
            {"loss.margin": {"choice": [1.0], "when": {"epochs": [1]}}},
            "/space/loss.margin/when/epochs",
            "condition_unknown",
        ),
        (
            {"epochs": {"choice": [1]}, "loss.margin": {"choice": [1.0], "when": {"epochs": [2]}}},
            "/space/loss.margin/when/epochs",
            "axes_contradict",
        ),
        ({"loss.temperature": {"uniform": [0.1, 0.5]}}, "/space/loss.temperature", "range_in_grid"),
        ({"epochs": {"choice": list(range(1, 40))}}, "/space", "too_many_trials"),
    ],
)
def test_a_bad_axis_is_told_at_its_place(space: dict[str, Any], pointer: str, code: str) -> None:
    assert found(space=space) == {pointer: code}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"space": {"loss.temperatur": {"choice": [1.0]}}},
            "loss.temperatur is no field .* did you mean loss.temperature",
        ),
        ({"space": {"loss.temperature": {"choice": [-1.0]}}}, "loss.temperature = -1.0: .* greater than 0"),
        (
            {"space": {"epochs": {"choice": list(range(1, 40))}}},
            "more than 32 trials .* take values away, .* raise the limit",
        ),
        ({"metric": "accuracy"}, "'accuracy' is never logged; did you mean .*accuracy"),
        ({"metric": "linear_accuracy_z"}, "linear_accuracy_z is never logged: set base.evaluation.probe_z to true"),
        ({"metric": "fine_tuned_accuracy_1pct"}, "is never logged: set base.evaluation.fine_tune to true"),
        (
            {"space": {"epochs": {"choice": [2]}, "optim.warmup_epochs": {"choice": [4.0]}}},
            r"shorten it, .*\(at optim.warmup_epochs = 4.0, epochs = 2\)",
        ),
        (
            {"space": {"loss": {"choice": [{}]}, "loss.margin": {"choice": [1.0]}}},
            "loss.margin is a part of loss.* keep one",
        ),
        ({"has_labels": False}, "knn_accuracy needs labels .* choose by uniformity"),
        (
            {"study": "temperature", "space": None, "has_labels": False},
            "temperature needs labels .* digits has none; name one",
        ),
    ],
)
def test_a_refusal_names_the_field_the_value_and_the_way_out(fields: dict[str, Any], words: str) -> None:
    has_labels = fields.pop("has_labels", None)
    asked = {"base": BASE, "space": SPACE, **fields}
    spec = SweepSpec.model_validate({name: value for name, value in asked.items() if value is not None})
    details = [problem.detail for problem in sweep_problems(spec, has_labels=has_labels)]
    assert any(re.search(words, detail) for detail in details), details


def test_an_empty_choice_is_refused_in_words() -> None:
    with pytest.raises(ValidationError, match="nothing to choose from; list a value, or take the path away"):
        SweepSpec.model_validate({"base": BASE, "space": {"loss.temperature": {"choice": []}}})


@pytest.mark.parametrize(
    ("domain", "pointer", "code"),
    [
        ({"uniform": [0.5, 0.1]}, "/uniform", "range_invalid"),
        ({"uniform": [0.1, 5000.0]}, "/uniform/1", "value_refused"),
    ],
)
def test_the_bounds_of_a_range_are_judged(domain: dict[str, Any], pointer: str, code: str) -> None:
    assert found(space={"loss.temperature": domain}, search="random") == {f"/space/loss.temperature{pointer}": code}


@pytest.mark.parametrize("search", ["grid", "random", "optuna"])
@pytest.mark.parametrize("bounds", [[1, 4], [2, 4], [2, 2], [3, 9]])
@pytest.mark.parametrize("kind", ["randint", "uniform", "loguniform"])
def test_a_range_over_listed_values_is_refused_with_them(search: str, bounds: list[int], kind: str) -> None:
    space = {"encoder.width": {kind: bounds}}
    (problem,) = sweep_problems(SweepSpec.model_validate({"base": BASE, "space": space, "search": search}))
    assert (problem.pointer, problem.code) == (f"/space/encoder.width/{kind}", "range_of_listed_values")
    assert re.match(rf"encoder.width: .*{bounds[0]}\S* to {bounds[1]}.* 1, 2, 4; use choice", problem.detail)
    assert problem.allowed == [1, 2, 4]


def test_a_range_over_listed_values_is_told_at_its_place_among_others() -> None:
    conditional = [{"choice": [1], "when": {"epochs": [1]}}, {"randint": [2, 4]}]
    space = {"epochs": {"choice": [1, 2]}, "encoder.width": conditional, "encoder.name": {"randint": [0, 1]}}
    assert found(space=space, search="optuna") == {
        "/space/encoder.width/1/randint": "range_of_listed_values",
        "/space/encoder.name/randint": "range_of_listed_values",
    }


def test_a_logarithmic_range_starts_above_zero() -> None:
    space = {"optim.weight_decay": {"loguniform": [0.0, 0.1]}}
    assert found(space=space, search="random") == {"/space/optim.weight_decay/loguniform": "range_invalid"}


def test_a_continuous_range_for_a_whole_number_names_randint() -> None:
    space = {"epochs": {"uniform": [1.5, 3.5]}}
    spec = SweepSpec.model_validate({"base": BASE, "space": space, "search": "random"})
    assert all("randint" in problem.detail for problem in sweep_problems(spec))


def test_neither_study_nor_space_is_refused() -> None:
    assert found(space={}) == {"/space": "space_missing"}


def test_an_unknown_study_lists_the_known() -> None:
    (problem,) = sweep_problems(SweepSpec(base=BASE, study="temprature"))
    assert (problem.pointer, problem.code) == ("/study", "study_unknown")
    assert problem.allowed == [study.name for study in list_studies()]


def test_a_wrong_base_is_told_field_by_field_with_the_space() -> None:
    base = {"epochs": 0, "views": {"operations": [{"op": "cutout", "p": 2.0}]}, "los": {}}
    assert found(base=base, space={"x": {"choice": [1]}}) == {
        "/base/epochs": "greater_than_equal",
        "/base/views/operations/0/p": "less_than_equal",
        "/base/los": "extra_forbidden",
        "/space/x": "path_unknown",
    }


def test_a_base_without_data_set_is_told() -> None:
    spec = SweepSpec(space=SweepSpec(base=BASE, space=SPACE).space)
    assert [problem.pointer for problem in sweep_problems(spec)] == ["/base/data"]


def test_random_counts_points_times_seeds() -> None:
    assert found(search="random", num_samples=20, seeds=[0, 1]) == {"/num_samples": "too_many_trials"}


def test_a_grid_repeats_points_by_seeds_only() -> None:
    assert found(num_samples=3) == {"/num_samples": "num_samples_of_grid"}


def test_a_seed_twice_and_seeds_beside_a_seed_axis_are_refused() -> None:
    assert found(seeds=[1, 1]) == {"/seeds": "duplicate"}
    assert found(space={"seed": {"choice": [1, 2]}}, seeds=[0]) == {"/space/seed": "axes_contradict"}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"metric": "accuracy"}, "metric_unknown"),
        ({"metric": "lr"}, "metric_of_no_result"),
        ({"metric": "test_linear_accuracy"}, "metric_of_test_split"),
        ({"metric": "linear_accuracy_z"}, "metric_never_logged"),
        ({"metric": "linear_accuracy", "base": {"evaluation": {"linear_probe": False}}}, "metric_never_logged"),
        ({"metric": "uniformity", "base": {"method": "supervised"}}, "metric_never_logged"),
        ({"metric": "linear_accuracy", "scheduler": "asha"}, "metric_not_by_epoch"),
        ({"scheduler": "asha", "base": {"evaluation": {"knn_every_epochs": 0}}}, "metric_not_by_epoch"),
        ({"scheduler": "median", "base": {"evaluation": {"knn_every_epochs": 4}}}, "metric_not_by_epoch"),
        ({"has_labels": False}, "metric_needs_labels"),
    ],
)
def test_a_metric_that_cannot_judge_is_refused(fields: dict[str, Any], code: str) -> None:
    assert found(**fields) == {"/metric": code}


@pytest.mark.parametrize("scheduler", ["asha", "median"])
@pytest.mark.parametrize("metric", ["loss", "contrastive_accuracy", "entropy", "knn_accuracy", "uniformity", "h_std"])
def test_trials_are_stopped_by_any_metric_that_an_epoch_has(scheduler: str, metric: str) -> None:
    assert found(scheduler=scheduler, metric=metric) == {}


def test_trials_are_stopped_by_what_is_measured_before_their_end() -> None:
    rarely = {"evaluation": {"knn_every_epochs": 3}}
    assert found(scheduler="asha", base=rarely) == {}
    assert found(scheduler="asha", base=rarely, space={"epochs": {"choice": [2, 9]}}) == {}, "those of 9 epochs are"
    never = {"evaluation": {"knn_every_epochs": 0}}
    assert found(scheduler="asha", metric="loss", mode="min", base=never) == {}, "each step has its loss"
    assert found(scheduler="fifo", base=never) == {}
    one_epoch = {"epochs": 1, "evaluation": {"knn_every_epochs": 1}}
    assert found(scheduler="asha", base=one_epoch) == {}, "the plan warns of it"


def test_an_unlabelled_data_set_can_be_swept_by_what_needs_no_labels() -> None:
    assert found(metric="uniformity", has_labels=False) == {}


def test_a_study_that_needs_labels_is_refused_without() -> None:
    codes = found(study="temperature", space=None, has_labels=False)
    assert codes["/study"] == "study_needs_labels"


def test_axes_that_contradict_are_told_with_the_point() -> None:
    space = {"epochs": {"choice": [2, 8]}, "optim.warmup_epochs": {"choice": [1.0, 4.0]}}
    assert found(space=space) == {"/space/optim.warmup_epochs/choice/1": "warmup_too_long"}


def test_an_axis_that_contradicts_the_base_is_told_at_the_axis() -> None:
    assert found(base={"optim": {"warmup_epochs": 3.0}}, space={"epochs": {"choice": [8, 2]}}) == {
        "/space/epochs/choice/1": "warmup_too_long"
    }
    scaling = {"scaling": {"num_workers": 4}}
    assert found(base=scaling, space={"batch_size": {"choice": [64, 66]}}) == {
        "/space/batch_size/choice/1": "batch_not_divisible"
    }


def test_a_contradiction_within_the_base_is_told_at_the_base() -> None:
    assert found(base={"optim": {"warmup_epochs": 9.0}}) == {"/base/optim/warmup_epochs": "warmup_too_long"}


def test_what_cannot_run_where_it_is_to_is_told_at_the_axis() -> None:
    assert found(space={"batch_size": {"choice": [64, 512]}}, largest_batch=100) == {
        "/space/batch_size/choice/1": "too_large"
    }


def test_a_suggested_search_of_many_axes_is_judged_at_the_values_of_each() -> None:
    many = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    space = {"batch_size": {"choice": [64, 4096]}, "optim.warmup_epochs": {"choice": [0.0, 1.0]}}
    space |= {path: {"choice": many} for path in ("loss.temperature", "optim.base_lr", "optim.momentum")}
    space |= {"optim.weight_decay": {"choice": many}, "projection_head.dim": {"choice": [1, 2, 3, 4, 5, 6, 7]}}
    assert found(space=space, search="optuna", largest_batch=2000) == {"/space/batch_size/choice/1": "too_large"}


def test_whole_numbers_that_must_divide_one_another_are_judged_between_the_bounds() -> None:
    space = {"batch_size": {"randint": [128, 256]}}
    base = {"scaling": {"num_workers": 2}}
    assert found(base=base, space=space, search="optuna") == {"/space/batch_size": "batch_not_divisible"}
    assert found(space=space, search="optuna") == {}


def test_a_suggested_search_is_judged_at_the_bounds_of_its_space() -> None:
    space = {"epochs": {"randint": [2, 20]}, "optim.warmup_epochs": {"uniform": [0.0, 1.9]}}
    assert found(space=space, search="optuna") == {}
    space["optim.warmup_epochs"] = {"uniform": [0.0, 5.0]}
    assert list(found(space=space, search="optuna").values()) == ["warmup_too_long"]
