"""The spec says all errors, spells out its defaults, and its digest follows what is computed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trainer.spec import PretrainSpec, spec_problems


def make(**changes: Any) -> PretrainSpec:
    return PretrainSpec.model_validate({"data": {"dataset": "digits"}, **changes})


def codes(spec: PretrainSpec) -> list[tuple[str, str]]:
    return [(problem.pointer, problem.code) for problem in spec_problems(spec)]


def test_only_the_data_set_is_needed() -> None:
    assert codes(make()) == []
    with pytest.raises(ValidationError, match="data"):
        PretrainSpec.model_validate({})


def test_a_resolved_spec_resolves_to_itself() -> None:
    spec = make(views={"preset": "simclr", "color_strength": 0.25}, epochs=40)
    again = PretrainSpec.model_validate(spec.resolved())
    assert again.resolved() == spec.resolved()
    assert again.digest() == spec.digest()


def test_scaling_and_limits_do_not_change_the_digest_and_all_else_does() -> None:
    spec = make()
    assert make(scaling={"num_workers": 4}, limits={"wall_time_s": 60}).digest() == spec.digest()
    for change in ({"seed": 1}, {"batch_size": 128}, {"loss": {"temperature": 0.1}}, {"views": {"blur": True}}):
        assert make(**change).digest() != spec.digest()


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (9, 0), (10, 1), (99, 9), (100, 10), (1000, 10)])
def test_warmup_is_a_tenth_of_the_epochs_and_ten_at_most(epochs: int, warmup: int) -> None:
    assert make(epochs=epochs).warmup_epochs() == warmup


@pytest.mark.parametrize(("rule", "peak"), [("linear", 1.2), ("sqrt", 0.3 * 32), ("none", 0.3)])
def test_the_learning_rate_follows_the_global_batch(rule: str, peak: float) -> None:
    assert make(batch_size=1024, optim={"lr_scaling": rule}).peak_lr() == pytest.approx(peak)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 1},
        {"batch_size": "256"},
        {"batch_size": True},
        {"epochs": 10**9},
        {"loss": {"temperature": 0}},
        {"loss": {"temperature": float("nan")}},
        {"loss": {"temperature": float("inf")}},
        {"scaling": {"num_workers": 10_000}},
        {"data": {"dataset": "http://169.254.169.254/"}},
        {"data": {"dataset": "../etc"}},
        {"data": {"dataset": "digits", "image_size": 100_000}},
        {"encoder": {"width": 3}},
        {"runtime_env": {}},
        {"views": {"operations": [{"op": "import os"}]}},
    ],
)
def test_a_value_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(**change)


def test_each_impossible_combination_is_named_and_none_hides_another() -> None:
    spec = make(
        batch_size=10,
        epochs=5,
        optim={"warmup_epochs": 5},
        scaling={"num_workers": 4},
        memory={"micro_batch": 3},
        loss={"semi_hard": True},
        views={"operations": [{"op": "crop_resize", "scale": [0.9, 0.1]}], "blur": True},
    )
    assert set(codes(spec)) == {
        ("/batch_size", "batch_not_divisible"),
        ("/optim/warmup_epochs", "warmup_too_long"),
        ("/memory/micro_batch", "micro_batch_with_batch_norm"),
        ("/memory/micro_batch", "micro_batch_not_divisor"),
        ("/loss/semi_hard", "semi_hard_without_pairs"),
        ("/views/operations/0/scale", "range_invalid"),
        ("/views/operations", "views_given_twice"),
    }
    for problem in spec_problems(spec):
        assert problem.detail


def test_every_end_of_a_worker_range_divides_the_batch() -> None:
    assert codes(make(batch_size=12, scaling={"num_workers": {"min": 2, "max": 4}})) == []
    assert ("/batch_size", "batch_not_divisible") in codes(
        make(batch_size=12, scaling={"num_workers": {"min": 2, "max": 5}})
    )
    assert ("/scaling/num_workers/min", "range_reversed") in codes(
        make(batch_size=12, scaling={"num_workers": {"min": 4, "max": 2}})
    )


def test_workers_on_nodes_of_their_own_are_so_many_and_no_range() -> None:
    spread = {"num_workers": 2, "placement": "strict_spread"}
    assert codes(make(batch_size=12, scaling=spread)) == []
    assert make(batch_size=12, scaling=spread).digest() == make(batch_size=12).digest()
    between = {"num_workers": {"min": 2, "max": 4}}
    assert codes(make(batch_size=12, scaling=between | {"placement": "spread"})) == []
    assert codes(make(batch_size=12, scaling=between | {"placement": "strict_spread"})) == [
        ("/scaling/placement", "range_strictly_spread")
    ]


def test_micro_batch_without_batch_norm_is_accepted() -> None:
    spec = make(memory={"micro_batch": 64}, encoder={"norm": "group"}, projection_head={"batch_norm": False})
    assert codes(spec) == []


@pytest.mark.parametrize(
    ("views", "names"),
    [
        ({}, ["crop_resize", "horizontal_flip", "color_jitter", "grayscale"]),
        ({"preset": "simclr"}, ["crop_resize", "horizontal_flip", "color_jitter", "grayscale", "gaussian_blur"]),
        ({"preset": "simclr", "blur": False}, ["crop_resize", "horizontal_flip", "color_jitter", "grayscale"]),
        ({"operations": [{"op": "sobel"}]}, ["sobel"]),
    ],
)
def test_a_preset_is_a_list_of_operations(views: dict[str, Any], names: list[str]) -> None:
    assert [operation.op for operation in make(views=views).views.resolved_operations()] == names
