from __future__ import annotations

import math

import pytest
import torch

from tests.unit.trainer.gloo_ranks import NUM_IMAGES, ranks, whole
from tests.unit.trainer.objective_oracles import OBJECTIVES, projections, value_and_gradient
from trainer.losses import build_objective, similarity
from trainer.losses.margin import margin_triplet

SPECS = ["margin", "margin without l2", "margin semi-hard"]


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
