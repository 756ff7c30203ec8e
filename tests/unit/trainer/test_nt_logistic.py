from __future__ import annotations

import math

import pytest
import torch

from tests.unit.trainer.gloo_ranks import NUM_IMAGES, ranks, whole
from tests.unit.trainer.objective_oracles import OBJECTIVES, projections, value_and_gradient
from trainer.losses import build_objective, similarity
from trainer.losses.nt_logistic import nt_logistic

SPECS = ["nt_logistic", "nt_logistic without l2", "nt_logistic semi-hard"]


@pytest.fixture(params=[512, 5], ids=["one tile", "many tiles"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "CPU_TILE", request.param)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("num_images", [1, 2, 9])
def test_value_and_gradient_are_those_of_brute_force(name: str, num_images: int) -> None:
    z = projections(num_images)
    loss, gradient = value_and_gradient(OBJECTIVES[name], z)
    expected, expected_gradient = value_and_gradient(OBJECTIVES[name], z, is_oracle=True)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_gradcheck(name: str) -> None:
    objective = build_objective(OBJECTIVES[name], group=None)
    assert torch.autograd.gradcheck(objective.loss, projections(4).requires_grad_())


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", SPECS)
def test_over_ranks_the_loss_and_gradient_are_those_of_one_process(num_ranks: int, name: str) -> None:
    loss, gradient = value_and_gradient(OBJECTIVES[name], projections(NUM_IMAGES), is_oracle=True)
    found = [rank["objectives"][name] for rank in ranks(num_ranks)]
    torch.testing.assert_close(torch.stack([part["loss"] for part in found]).mean(), loss, rtol=1e-12, atol=0)
    averaged = whole([part["gradient"] for part in found]) / num_ranks  # as parameters' gradients are
    torch.testing.assert_close(averaged, gradient, rtol=1e-11, atol=1e-12)


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
