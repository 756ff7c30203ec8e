"""What is drawn has the distribution that is promised."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from trainer.spec import ColorJitter, CropResize, Cutout, GaussianBlur
from trainer.views.blur import RandomBlur
from trainer.views.chance import Chance
from trainer.views.color import RandomJitter
from trainer.views.corruption import RandomCutout
from trainer.views.crop import RandomCrop

NUM_VIEWS = 20_000
CRITICAL = 1.95  # of Kolmogorov and Smirnov's statistic, times the root of the sample size, at 0.1 %


def some_chance() -> Chance:
    ids = torch.arange(NUM_VIEWS)
    return Chance(seed=1, epoch=0, sample_ids=ids, views=torch.zeros_like(ids), stream=1)


def distance_from_uniform(values: Tensor, *, low: float, high: float) -> float:
    """Return Kolmogorov and Smirnov's statistic times the root of the number of values."""
    ordered = ((values - low) / (high - low)).sort().values
    levels = torch.arange(1, len(ordered) + 1) / len(ordered)
    return (ordered - levels).abs().max().item() * math.sqrt(len(ordered))


def distance_between(one: Tensor, other: Tensor) -> float:
    """Return the two-sample statistic times the root of the effective number of values."""
    grid = torch.cat([one, other]).sort().values
    levels = [torch.searchsorted(values.sort().values, grid, right=True) / len(values) for values in (one, other)]
    effective = len(one) * len(other) / (len(one) + len(other))
    return (levels[0] - levels[1]).abs().max().item() * math.sqrt(effective)


@pytest.mark.parametrize(
    "given",
    [{}, {"scale": (0.5, 1.0), "ratio": (0.5, 4.0)}, {"scale": (0.9, 1.0), "ratio": (2.0, 3.0)}],
    ids=["paper", "many tries", "always central"],
)
def test_boxes_are_distributed_as_random_resized_crop_s(given: dict[str, Any]) -> None:
    operation = CropResize(**given)
    boxes = RandomCrop(operation, side=64).draw(some_chance())
    reference = v2.RandomResizedCrop(64, scale=operation.scale, ratio=operation.ratio)
    image = torch.zeros(3, 64, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [reference.make_params([image]) for _ in range(2000)]
    for name, values in zip(("top", "left", "height", "width"), boxes, strict=True):
        expected = torch.tensor([params[name] for params in drawn])
        assert distance_between(values, expected) < CRITICAL, name


@pytest.mark.parametrize(
    ("ratio", "height", "width"), [((2.0, 3.0), 32, 64), ((0.25, 0.5), 64, 32), ((0.5, 2.0), 64, 64)]
)
def test_a_box_that_never_fits_is_the_largest_central_one(ratio: tuple[float, float], height: int, width: int) -> None:
    boxes = RandomCrop(CropResize(scale=(4.0, 4.0), ratio=ratio), side=64).draw(some_chance())
    expected = ((64 - height) // 2, (64 - width) // 2, height, width)
    assert [set(values.tolist()) for values in boxes] == [{value} for value in expected]


@pytest.mark.parametrize(("strength", "low", "high"), [(0.5, 0.6, 1.4), (1.0, 0.2, 1.8), (2.0, 0.0, 2.6)])
def test_factors_are_uniform_and_widen_with_strength(strength: float, low: float, high: float) -> None:
    drawn = RandomJitter(ColorJitter(strength=strength)).draw(some_chance())
    for values in drawn.factors.unbind(1):
        assert distance_from_uniform(values, low=low, high=high) < CRITICAL
    assert distance_from_uniform(drawn.hue, low=-0.2 * strength, high=0.2 * strength) < CRITICAL
    correlations = torch.corrcoef(torch.cat([drawn.factors, drawn.hue[:, None]], dim=1).T) - torch.eye(4)
    assert correlations.abs().max() < 0.04


def test_all_24_orders_are_equally_likely() -> None:
    order_M4 = RandomJitter(ColorJitter()).draw(some_chance()).order
    counts = Counter(map(tuple, order_M4.tolist()))
    assert len(counts) == 24
    expected = NUM_VIEWS / 24
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 49.7  # chi-square, 23 degrees, 0.1 %


def test_sigma_is_uniform() -> None:
    (sigma_M,) = RandomBlur(GaussianBlur(), side=224).draw(some_chance())
    assert distance_from_uniform(sigma_M, low=0.1, high=2.0) < CRITICAL


def test_the_middle_of_a_square_is_uniform_and_the_border_cuts_it() -> None:
    squares = RandomCutout(Cutout(size_ratio=0.5), side=32).draw(some_chance())
    heights = squares.bottom - squares.top
    assert heights.min() == 8
    assert heights.max() == 16
    assert (heights == 16).double().mean() == pytest.approx(17 / 32, abs=0.015)
