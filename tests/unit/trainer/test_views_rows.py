"""Rows: some views are changed, the others are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainer.views.rows import changed, rows_where

CHOICES = [[False] * 4, [True] * 4, [False, True, True, False], [True, False, True, False], [False, False, False, True]]


@pytest.mark.parametrize("is_chosen", CHOICES)
@pytest.mark.parametrize("change", [lambda some: some + 1, lambda some: some.add_(1)], ids=["new", "in place"])
def test_the_chosen_views_are_changed(is_chosen: list[bool], change: Callable[[Tensor], Tensor]) -> None:
    planes = torch.rand(3, 4, 2, 2)
    expected = planes + torch.tensor(is_chosen, dtype=torch.float32)[:, None, None]
    assert torch.equal(changed(planes, rows_where(is_chosen), change), expected)


@pytest.mark.parametrize(("is_chosen", "is_slice"), [*zip(CHOICES, [True, True, True, False, True], strict=True)])
def test_neighbours_are_selected_without_a_copy(is_chosen: list[bool], is_slice: bool) -> None:  # noqa: FBT001 - a parameter
    assert isinstance(rows_where(is_chosen), slice) == is_slice
