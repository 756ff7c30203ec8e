"""What this installation says of a sweep: each point that may run is judged, however its axes are written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.intake.environment import Environment
from service.intake.sweep_judgement import judge_sweep
from trainer.errors import DataError
from trainer.spec import PretrainSpec
from tune_spaces.spec import SweepSpec

LABELLED = {"shapes": True, "digits": True, "unlabelled": False}
NUM_IMAGES = 2000


class Installation:
    """8 CPUs, no GPU, at most 4 workers, three data sets."""

    settings = SimpleNamespace(max_workers=4, cpus=8)
    capacity = SimpleNamespace(cpus_total=8.0, gpus_total=0.0)

    def images_per_second(self, _: PretrainSpec) -> None:
        return None

    def dataset(self, name: str) -> Any:
        if name not in LABELLED:
            raise DataError(f"there is no data set {name!r}", allowed=sorted(LABELLED))
        return SimpleNamespace(has_labels=LABELLED[name])

    def num_images(self, spec: PretrainSpec) -> int:
        self.dataset(spec.data.dataset)
        return NUM_IMAGES


def judged(space: dict[str, Any], **fields: Any) -> dict[str, str]:
    sweep = SweepSpec.model_validate({"base": {"data": {"dataset": "shapes"}}, "space": space, **fields})
    problems, plan = judge_sweep(sweep, cast(Environment, Installation()))
    assert (plan is None) == bool(problems)
    return {problem.pointer: problem.code for problem in problems}


@pytest.mark.parametrize(
    ("space", "pointer", "code"),
    [
        ({"data": {"choice": [{"dataset": "digits"}, {"dataset": "nope"}]}}, "/space/data/choice/1", "dataset_unknown"),
        ({"scaling": {"choice": [{}, {"num_workers": 8}]}}, "/space/scaling/choice/1", "too_many_workers"),
        ({"scaling": {"choice": [{"cpus_per_worker": 64}]}}, "/space/scaling/choice/0", "cluster_too_small"),
        ({"scaling": {"choice": [{}, {"gpus_per_worker": 1}]}}, "/space/scaling/choice/1", "too_few_gpus"),
        (
            {"scaling.num_workers": {"choice": [1, 4]}, "scaling.cpus_per_worker": {"choice": [1, 4]}},
            "/space/scaling.num_workers/choice/1",
            "cluster_too_small",
        ),
        (
            {"method": {"choice": ["simclr", "supervised"]}, "data.dataset": {"choice": ["shapes", "unlabelled"]}},
            "/space/method/choice/1",
            "labels_missing",
        ),
        ({"batch_size": {"choice": [64, 4096]}}, "/space/batch_size/choice/1", "batch_exceeds_dataset"),
    ],
)
def test_a_point_that_cannot_run_here_is_told_at_its_value(space: dict[str, Any], pointer: str, code: str) -> None:
    metric = {"metric": "h_std"} if "method" in space else {}
    assert judged(space, **metric).get(pointer) == code


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_range_is_judged_by_what_it_draws_or_may_suggest(search: str) -> None:
    space = {"scaling.cpus_per_worker": {"randint": [1, 64]}}
    assert judged(space, search=search, num_samples=5) == {"/space/scaling.cpus_per_worker": "cluster_too_small"}


@pytest.mark.parametrize("search", ["grid", "random", "optuna"])
@pytest.mark.parametrize("bounds", [[1, 4], [2, 4]])
def test_a_range_with_values_between_that_its_field_refuses_is_an_answer(search: str, bounds: list[int]) -> None:
    space = {"encoder.width": {"randint": bounds}}
    assert judged(space, search=search) == {"/space/encoder.width/randint": "range_of_listed_values"}


@pytest.mark.parametrize("path", ["data.dataset", "data"])
def test_a_base_whose_data_set_the_axis_always_replaces_is_not_judged_by_it(path: str) -> None:
    names: list[Any] = ["shapes", "digits"]
    space = {path: {"choice": names if path == "data.dataset" else [{"dataset": name} for name in names]}}
    assert judged(space, base={"data": {"dataset": "unlabelled"}}) == {}
    assert judged(space, base={"data": {"dataset": "nope"}}) == {}


def test_labels_are_asked_of_each_data_set_that_is_used() -> None:
    space = {"data": {"choice": [{"dataset": "shapes"}, {"dataset": "unlabelled"}]}}
    assert judged(space) == {"/metric": "metric_needs_labels"}


def test_what_the_base_cannot_do_is_told_at_the_base() -> None:
    base = {"data": {"dataset": "shapes"}, "scaling": {"cpus_per_worker": 64}}
    assert judged({"epochs": {"choice": [1, 2]}}, base=base) == {"/base/scaling/num_workers": "cluster_too_small"}
