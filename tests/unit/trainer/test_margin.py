from __future__ import annotations

import math

import pytest
import torch

from trainer.losses.margin import margin_triplet


def test_collapsed_projections_score_the_margin() -> None:
    assert margin_triplet(torch.ones(8, 4), margin=0.3).item() == pytest.approx(0.3)


def test_collapsed_projections_have_no_semi_hard_negative() -> None:
    assert margin_triplet(torch.ones(8, 4), margin=0.3, semi_hard=True).item() == 0


def test_images_farther_apart_than_the_margin_cost_nothing() -> None:
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(2, 1).requires_grad_()
    loss = margin_triplet(opposite, margin=1.9)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert opposite.grad is not None
    assert opposite.grad.abs().max() == 0


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_margin_not_above_zero_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        margin_triplet(torch.ones(4, 4), margin=margin)


def test_rows_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs"):
        margin_triplet(torch.ones(3, 4), margin=0.5)
