from __future__ import annotations

import math

import pytest
import torch

from tests.unit.trainer.objective_oracles import projections
from trainer.losses.nt_logistic import nt_logistic


def test_without_a_semi_hard_negative_an_anchor_keeps_its_positive_term() -> None:
    alike = torch.ones(8, 4)  # no negative is farther than the positive
    loss = nt_logistic(alike, temperature=0.5, semi_hard=True)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2)))


def test_positive_and_negatives_weigh_the_same() -> None:
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(2, 1)  # positives at 1, all negatives at -1
    assert nt_logistic(opposite, temperature=0.5).item() == pytest.approx(2 * math.log1p(math.exp(-2)))


@pytest.mark.parametrize("semi_hard", [True, False])
def test_a_low_temperature_in_half_precision_stays_finite(semi_hard: bool) -> None:  # noqa: FBT001 - a case
    z = projections(9, dtype=torch.bfloat16).requires_grad_()
    loss = nt_logistic(z, temperature=0.01, semi_hard=semi_hard)
    torch.autograd.backward(loss)
    assert z.grad is not None
    assert loss.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        nt_logistic(torch.ones(4, 4), temperature=temperature)


def test_rows_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs"):
        nt_logistic(torch.ones(3, 4), temperature=0.5)
