"""Spaces: what points they have, and that draws depend on seed, number and path alone."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from tune_spaces.space import Space, draw, grid

SPACES = TypeAdapter(Space)


def space(document: dict[str, object]) -> Space:
    return SPACES.validate_python(document)


def test_grid_is_in_written_order_with_the_last_path_fastest() -> None:
    points = list(grid(space({"epochs": {"choice": [1, 2]}, "batch_size": {"choice": [8, 4]}})))
    assert [(p["epochs"], p["batch_size"]) for p in points] == [(1, 8), (1, 4), (2, 8), (2, 4)]


def test_a_path_whose_condition_fails_is_not_in_the_point() -> None:
    points = list(
        grid(
            space(
                {
                    "loss.kind": {"choice": ["nt_xent", "margin"]},
                    "loss.semi_hard": {"choice": [False, True], "when": {"loss.kind": ["margin"]}},
                }
            )
        )
    )
    assert points == [
        {"loss.kind": "nt_xent"},
        {"loss.kind": "margin", "loss.semi_hard": False},
        {"loss.kind": "margin", "loss.semi_hard": True},
    ]


def test_a_path_takes_the_alternative_whose_condition_holds() -> None:
    points = list(
        grid(
            space(
                {
                    "loss.normalize": {"choice": [True, False]},
                    "loss.temperature": [
                        {"choice": [0.1, 0.5], "when": {"loss.normalize": [True]}},
                        {"choice": [10.0], "when": {"loss.normalize": [False]}},
                    ],
                }
            )
        )
    )
    assert [(p["loss.normalize"], p["loss.temperature"]) for p in points] == [(True, 0.1), (True, 0.5), (False, 10.0)]


NESTED: dict[str, object] = {
    "method": {"choice": ["supervised", "simclr"]},
    "loss.kind": {"choice": ["nt_xent", "margin"], "when": {"method": ["simclr"]}},
    "loss.semi_hard": {"choice": [False, True], "when": {"loss.kind": ["margin"]}},
    "loss.margin": {"uniform": [0.1, 0.9], "when": {"method": ["simclr"], "loss.semi_hard": [True]}},
}


def test_a_condition_on_a_path_that_has_one_itself_holds_only_where_that_path_is() -> None:
    listed = {**NESTED, "loss.margin": {"choice": [0.2], "when": {"method": ["simclr"], "loss.semi_hard": [True]}}}
    assert list(grid(space(listed))) == [
        {"method": "supervised"},
        {"method": "simclr", "loss.kind": "nt_xent"},
        {"method": "simclr", "loss.kind": "margin", "loss.semi_hard": False},
        {"method": "simclr", "loss.kind": "margin", "loss.semi_hard": True, "loss.margin": 0.2},
    ]


def test_draws_keep_nested_conditions() -> None:
    depths = set()
    for index in range(100):
        point = draw(space(NESTED), seed=0, index=index)
        depths.add(tuple(point.values())[:3])
        assert ("loss.kind" in point) == (point["method"] == "simclr")
        assert ("loss.semi_hard" in point) == (point.get("loss.kind") == "margin")
        assert ("loss.margin" in point) == (point.get("loss.semi_hard") is True)
    assert len(depths) == 4


def test_draws_stay_within_bounds_and_reach_both_ends_of_randint() -> None:
    found = space(
        {
            "epochs": {"randint": [1, 3]},
            "loss.temperature": {"loguniform": [0.05, 5.0]},
            "optim.base_lr": {"uniform": [0.1, 0.2]},
        }
    )
    points = [draw(found, seed=0, index=index) for index in range(300)]
    assert {point["epochs"] for point in points} == {1, 2, 3}
    assert all(0.05 <= point["loss.temperature"] <= 5.0 for point in points)
    assert all(0.1 <= point["optim.base_lr"] <= 0.2 for point in points)
    below = sum(point["loss.temperature"] < 0.5 for point in points)
    assert 110 < below < 190, "half of a loguniform lies below its geometric mean"


def test_another_axis_leaves_the_draws_of_the_others_as_they_are() -> None:
    one = space({"loss.temperature": {"uniform": [0.1, 1.0]}})
    two = space({"epochs": {"randint": [1, 9]}, "loss.temperature": {"uniform": [0.1, 1.0]}})
    for index in range(5):
        assert draw(one, seed=3, index=index)["loss.temperature"] == draw(two, seed=3, index=index)["loss.temperature"]
    assert draw(one, seed=3, index=0) != draw(one, seed=4, index=0)


@pytest.mark.parametrize(
    "domain", [{"choice": []}, {"normal": [0, 1]}, {"choice": [1], "uniform": [0, 1]}, {"uniform": [1]}, {}, 5]
)
def test_what_is_no_domain_is_refused(domain: object) -> None:
    with pytest.raises(ValidationError):
        space({"epochs": domain})
