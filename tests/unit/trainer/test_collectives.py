from __future__ import annotations

import pytest
import torch

from tests.unit.trainer.gloo_ranks import ranks
from trainer.collectives import all_gather, mean_flat_, rank, world_size


def test_no_group_means_this_process_alone() -> None:
    x = torch.randn(2, 3)
    assert (world_size(None), rank(None)) == (1, 0)
    assert torch.equal(all_gather(x, group=None), x.unsqueeze(0))


def test_alone_the_mean_touches_nothing() -> None:
    x = torch.randn(3)
    version = x._version
    mean_flat_([x], group=None)
    assert x._version == version


def test_the_gather_carries_no_gradient() -> None:
    assert not all_gather(torch.ones(2, requires_grad=True), group=None).requires_grad


def test_a_mean_of_integers_is_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        mean_flat_([torch.ones(2), torch.tensor([1])], group=None)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_gather_a_stack_in_rank_order(num_ranks: int) -> None:
    for r, found in enumerate(ranks(num_ranks)):
        assert found["collectives"]["place"] == (r, num_ranks)
        assert found["collectives"]["gathered"].tolist() == [[[q, 10 * q]] for q in range(num_ranks)]


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_the_mean_over_ranks_is_in_place_in_any_layout_and_type(num_ranks: int) -> None:
    mean_of_ranks = (num_ranks - 1) / 2
    for found in ranks(num_ranks):
        transposed, scalar, channels_last = found["collectives"]["means"]
        assert torch.equal(transposed, torch.arange(6.0).view(2, 3).T * (1 + mean_of_ranks))
        assert scalar.dtype is torch.float64
        assert scalar.item() == mean_of_ranks
        assert torch.equal(channels_last, torch.full((2, 3, 2, 2), 1 + mean_of_ranks))
        assert found["collectives"]["is_in_place"]
