"""Counter-based randomness: uniform, independent, the same for ever."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.seeding import initialisation_generator, normal, permutation, uniform

DRAW: dict[str, Any] = {"seed": 7, "epoch": 3, "view": 1, "stream": 5}
IDS = torch.arange(20_000)
GOLDEN_UNIFORM = [
    [0.43705262960961444, 0.19197628301758596],
    [0.25732500021682425, 0.8643534701501899],
    [0.1516222533988547, 0.10508345009530884],
]
GOLDEN_NORMAL = [
    [-1.2235807393669018, -1.1851910840399222],
    [-0.4676617266408213, -1.8386886006729175],
    [0.6295756451962045, -0.17144359817299457],
]
GOLDEN_PERMUTATION = [0, 9, 1, 2, 4, 3, 5, 8, 6, 7]


def draw(count: int = 1, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = {"sample_ids_B": IDS, "count": count} | DRAW | changes
    return uniform(**arguments)


def chi_square(values: Tensor, *, bins: int) -> float:
    """Return Pearson's statistic against equal bins of [0, 1), in standard deviations from its mean."""
    counts = torch.histc(values, bins=bins, min=0, max=1)
    statistic = ((counts - counts.mean()).square() / counts.mean()).sum().item()
    return float((statistic - (bins - 1)) / (2 * (bins - 1)) ** 0.5)


def test_numbers_never_change_silently() -> None:
    ids = torch.tensor([0, 1, 12_345_678_901])
    values = uniform(seed=2**63 - 1, epoch=0, sample_ids_B=ids, view=0, stream=0, count=2)
    assert values.tolist() == GOLDEN_UNIFORM
    values = normal(seed=1, epoch=2, sample_ids_B=ids, view=1, stream=3, count=2)
    torch.testing.assert_close(values, torch.tensor(GOLDEN_NORMAL, dtype=torch.float64), rtol=1e-12, atol=0)
    assert permutation(seed=1, epoch=2, size=10).tolist() == GOLDEN_PERMUTATION


def test_numbers_are_uniform_over_ids_and_over_counters() -> None:
    values = draw(8)
    assert values.dtype == torch.float64
    assert 0 <= values.min() < values.max() < 1
    for column in values.unbind(1):
        assert abs(chi_square(column, bins=100)) < 4
    assert abs(chi_square(uniform(sample_ids_B=IDS[:1], count=100_000, **DRAW)[0], bins=100)) < 4


@pytest.mark.parametrize("name", ["seed", "epoch", "view", "stream"])
def test_neighbouring_keys_are_distinct_and_independent(name: str) -> None:
    one, other = draw()[:, 0], draw(**{name: DRAW[name] + 1})[:, 0]
    assert not (one == other).any()
    assert abs(chi_square((one - other) % 1, bins=100)) < 4
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_seed_epoch_and_stream_do_not_trade_places() -> None:
    draws = [
        draw(seed=seed, epoch=epoch, stream=stream, view=view)[:100]
        for seed, epoch, stream, view in itertools.product(range(3), range(3), range(3), range(2))
    ]
    assert len(set(torch.cat(draws).flatten().tolist())) == len(draws) * 100


def test_a_row_depends_on_its_own_id_alone() -> None:
    whole = draw(3)
    rows = torch.tensor([19_999, 4, 4, 0])
    assert torch.equal(draw(3, sample_ids_B=rows), whole[rows])
    assert torch.equal(draw(2), whole[:, :2])


def test_each_row_may_have_a_view_of_its_own() -> None:
    ids = torch.tensor([5, 5, 6])
    mixed = draw(sample_ids_B=ids, view=torch.tensor([0, 1, 1]))
    assert torch.equal(mixed, torch.cat([draw(sample_ids_B=ids[:1], view=0), draw(sample_ids_B=ids[1:], view=1)]))


def test_normal_numbers_have_the_normal_moments_and_independent_neighbours() -> None:
    values = normal(sample_ids_B=IDS, count=10, **DRAW)
    assert abs(values.mean()) < 0.01
    assert abs(values.var() - 1) < 0.01
    assert abs(values.pow(4).mean() - 3) < 0.06
    assert abs(chi_square(torch.special.ndtr(values).flatten(), bins=100)) < 4
    assert np.abs(np.corrcoef(values.T) - np.eye(10)).max() < 0.03


def test_a_permutation_holds_each_sample_once_and_changes_with_seed_and_epoch() -> None:
    orders = [permutation(seed=seed, epoch=epoch, size=1000) for seed in range(3) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(1000))
    for one, other in itertools.combinations([np.arange(1000), *orders], 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.15
    assert permutation(seed=0, epoch=0, size=0).shape == (0,)


def test_first_values_depend_on_seed_and_part_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    drawn = {
        torch.rand(1, generator=initialisation_generator(seed, part=part)).item()
        for seed in (0, 1, 2**32, 2**63 - 1)
        for part in ("encoder", "head")
    }
    assert len(drawn) == 8
    assert torch.equal(torch.get_rng_state(), before)
