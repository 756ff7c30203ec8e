"""What holds for every objective: its oracle, its gradient, its value over ranks."""

from __future__ import annotations

import pytest
import torch

from tests.unit.trainer.gloo_ranks import NUM_IMAGES, ranks, whole
from tests.unit.trainer.objective_oracles import OBJECTIVES, projections, value_and_gradient
from trainer.losses import build_objective, similarity


@pytest.fixture(params=[(512, 512), (5, 7)], ids=["one tile", "many tiles"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "CPU_TILE", request.param)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("num_images", [1, 2, 9])
def test_value_and_gradient_are_those_of_brute_force(name: str, num_images: int) -> None:
    z = projections(num_images)
    loss, gradient = value_and_gradient(OBJECTIVES[name], z)
    expected, expected_gradient = value_and_gradient(OBJECTIVES[name], z, is_oracle=True)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradcheck(name: str) -> None:
    objective = build_objective(OBJECTIVES[name], group=None)
    assert torch.autograd.gradcheck(objective.loss, projections(4).requires_grad_())


@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_over_ranks_the_loss_and_gradient_are_those_of_one_process(num_ranks: int, name: str) -> None:
    loss, gradient = value_and_gradient(OBJECTIVES[name], projections(NUM_IMAGES), is_oracle=True)
    found = [rank["objectives"][name] for rank in ranks(num_ranks)]
    torch.testing.assert_close(torch.stack([part["loss"] for part in found]).mean(), loss, rtol=1e-12, atol=0)
    averaged = whole([part["gradient"] for part in found]) / num_ranks  # as parameters' gradients are
    torch.testing.assert_close(averaged, gradient, rtol=1e-11, atol=1e-12)
