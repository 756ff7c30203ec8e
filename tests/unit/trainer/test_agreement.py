from __future__ import annotations

import math

import pytest
import torch

from tests.unit.trainer.gloo_ranks import NUM_IMAGES, ranks
from tests.unit.trainer.objective_oracles import OBJECTIVES, oracle_agreement, projections
from trainer.losses import build_objective, similarity
from trainer.losses.agreement import agreement


@pytest.fixture(params=[(512, 512), (5, 7)], ids=["one tile", "many tiles"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "CPU_TILE", request.param)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("num_images", [1, 2, 13])
def test_accuracy_and_entropy_are_those_of_brute_force(name: str, num_images: int) -> None:
    spec, z = OBJECTIVES[name], projections(num_images)
    accuracy, entropy = oracle_agreement(spec, z)
    found = agreement(z, temperature=spec.temperature, normalize=spec.normalize)
    assert found.contrastive_accuracy.item() == pytest.approx(accuracy)
    assert found.entropy.item() == pytest.approx(entropy, abs=1e-12)


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_mean_over_ranks_is_the_global_value(num_ranks: int, name: str) -> None:
    accuracy, entropy = oracle_agreement(OBJECTIVES[name], projections(NUM_IMAGES))
    found = [rank["objectives"][name] for rank in ranks(num_ranks)]
    assert sum(part["contrastive_accuracy"].item() for part in found) / num_ranks == pytest.approx(accuracy)
    assert sum(part["entropy"].item() for part in found) / num_ranks == pytest.approx(entropy)


def test_an_objective_reports_the_same_as_the_measure_alone() -> None:
    z = projections(9).requires_grad_()
    output = build_objective(OBJECTIVES["nt_xent"], group=None)(z)
    alone = agreement(z, temperature=OBJECTIVES["nt_xent"].temperature)
    assert torch.equal(output.contrastive_accuracy, alone.contrastive_accuracy)
    assert torch.equal(output.entropy, alone.entropy)
    assert output.loss.requires_grad
    assert not output.entropy.requires_grad


def test_collapsed_projections_agree_on_nothing() -> None:
    found = agreement(torch.ones(16, 4), temperature=0.5)
    assert found.contrastive_accuracy.item() == 0
    assert found.entropy.item() == pytest.approx(math.log(8))


def test_a_low_temperature_in_half_precision_stays_finite() -> None:
    found = agreement(projections(9, dtype=torch.bfloat16), temperature=0.001)
    assert found.entropy.isfinite()
    assert found.entropy.dtype is torch.float32


def test_rows_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs"):
        agreement(torch.ones(3, 4), temperature=0.5)


def test_a_temperature_not_above_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        agreement(torch.ones(4, 4), temperature=0.0)
