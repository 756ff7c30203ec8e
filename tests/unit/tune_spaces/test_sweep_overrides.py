"""Dotted overrides on documents, and points as flat params."""

from __future__ import annotations

import pytest

from tune_spaces.overrides import apply_overrides, flat_params, listed_values, merge, point_of, spec_paths


def test_an_override_replaces_one_value_and_leaves_the_original_alone() -> None:
    document = {"loss": {"temperature": 0.5, "kind": "nt_xent"}}
    changed = apply_overrides(document, {"loss.temperature": 0.1, "optim.base_lr": 1.0})
    assert changed == {"loss": {"temperature": 0.1, "kind": "nt_xent"}, "optim": {"base_lr": 1.0}}
    assert document == {"loss": {"temperature": 0.5, "kind": "nt_xent"}}


def test_a_path_through_a_scalar_is_an_error() -> None:
    with pytest.raises(KeyError):
        apply_overrides({"epochs": 3}, {"epochs.more": 1})


def test_merge_goes_into_parts_and_replaces_lists() -> None:
    assert merge({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"c": [2]}}) == {"a": {"b": 1, "c": [2]}, "d": 2}


def test_params_are_scalars_or_json() -> None:
    assert flat_params({"epochs": 2, "views.operations": [{"op": "sobel"}], "views.blur": None}) == {
        "epochs": 2,
        "views.operations": '[{"op":"sobel"}]',
        "views.blur": None,
    }


def test_paths_are_the_fields_of_the_spec_and_its_parts() -> None:
    assert {"loss", "loss.temperature", "batch_size", "data.dataset", "scaling.num_workers"} <= spec_paths()
    assert "loss.temperatur" not in spec_paths()


def test_flat_params_become_a_point_again() -> None:
    point = {"epochs": 2, "views.operations": [{"op": "sobel"}], "loss": {"kind": "margin"}, "data.dataset": "digits"}
    assert point_of(flat_params(point)) == point


def test_a_field_of_listed_values_has_them_in_order() -> None:
    assert listed_values("encoder.name")[:2] == ("resnet8", "resnet14")
    assert listed_values("encoder.width") == (1, 2, 4)
    assert listed_values("epochs") == listed_values("loss") == listed_values("no.such") == ()
