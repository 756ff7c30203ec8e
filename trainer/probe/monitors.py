"""Collapse monitors: has h lost its dimensions, and do views of z agree and spread?"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pdist

__all__ = ["Spread", "alignment", "effective_rank", "has_collapsed", "mean_std", "spread", "uniformity"]

COLLAPSED_STD_RATIO: Final = 0.1  # of the untrained encoder's
COLLAPSED_RANK: Final = 2.0  # below it, one direction holds nearly all of h
COLLAPSED_RANK_RATIO: Final = 0.5  # of the untrained encoder's, where that is low by itself


class Spread(NamedTuple):
    """How far h spreads over images: `mean_std` and `effective_rank`."""

    std: float
    rank: float


def spread(h_MR: Tensor) -> Spread:
    """Return both measures of one h."""
    return Spread(std=mean_std(h_MR), rank=effective_rank(h_MR))


def has_collapsed(trained: Spread, *, untrained: Spread) -> bool:
    """Return whether training took from h what even random weights have, on the same images.

    Collapsed is an h that varies less than a tenth as much as the untrained encoder's, or whose
    effective rank is below 2 and below half of the untrained encoder's. Images that are alike give
    any encoder a low spread (1.6 dimensions on small blots on white), hence no absolute bound alone.
    """
    return trained.std < COLLAPSED_STD_RATIO * untrained.std or trained.rank < min(
        COLLAPSED_RANK, COLLAPSED_RANK_RATIO * untrained.rank
    )


def mean_std(h_MR: Tensor) -> float:
    """Return the standard deviation of l2-normalised h over images, averaged over its R dimensions.

    0 when all images have one h; 1 / sqrt(R) when they spread evenly (Chen and He 2021, section 4.1).
    """
    return float(normalize(h_MR.double(), dim=1).std(dim=0, correction=0).mean())


def effective_rank(h_MR: Tensor) -> float:
    """Return exp of the entropy of h's normalised singular values, 1..min(M, R) (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals(h_MR.double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def alignment(z_2BD: Tensor) -> float:
    """Return the mean squared distance of positive pairs of l2-normalised z, 0..4; lower is closer.

    Rows k and k + B are the two views of image k (Wang and Isola 2020, section 4.2, alpha = 2).
    """
    first_BD, second_BD = normalize(z_2BD.double(), dim=1).chunk(2)
    return float((first_BD - second_BD).square().sum(dim=1).mean())


def uniformity(z_2BD: Tensor) -> float:
    """Return log of the mean exp(-2 d^2) over pairs within a view, averaged over both; <= 0, lower spreads more.

    Needs two images at least (Wang and Isola 2020, section 4.2, t = 2). O(B^2) memory.
    """
    views = normalize(z_2BD.double(), dim=1).chunk(2)
    return float(torch.stack([pdist(view).square().mul(-2).exp().mean().log() for view in views]).mean())
