"""The engine of the objectives that judge pairs one by one (SimCLR, Table 2, second and third row).

The term of anchor i is `positive(p_i)` plus a reduction over its negatives j of
`negative(s_ij, p_i)`, where p_i is the similarity of i and its positive. The reduction is

- the MEAN over all 2(N - 1) negatives, or
- with semi-hard mining (Schroff et al. 2015; SimCLR, section 5.1) the one negative that is closest
  among those farther from the anchor than its positive, and 0 if there is none.

Unlike NT-Xent, a pair's slope needs no sum over other pairs, so one pass over the tiles yields the
loss and its gradient; autograd only hands the gradient over.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from trainer.collectives import all_gather
from trainer.losses.similarity import Views, WeightedSums, check_projections, normalized_backward

__all__ = ["PairTerms", "pair_loss_and_views"]


class PairTerms(Protocol):
    """The terms of an objective and their slopes, elementwise; `p` broadcasts against `s`."""

    def positive(self, p: Tensor) -> Tensor:
        """Return the term of the positive pair."""
        ...

    def positive_slope(self, p: Tensor) -> Tensor:
        """Return d positive / dp."""
        ...

    def negative(self, s: Tensor, p: Tensor) -> Tensor:
        """Return the term of a negative."""
        ...

    def negative_slopes(self, s: Tensor, p: Tensor) -> tuple[Tensor, float]:
        """Return d negative / ds, and d negative / dp as a multiple of it."""
        ...


def pair_loss_and_views(
    z_2BD: Tensor, *, terms: PairTerms, scale: float, normalize: bool, is_semi_hard: bool, group: ProcessGroup | None
) -> tuple[Tensor, Views]:
    """Return the mean over this rank's 2B anchors of their terms, and the gathered views.

    Similarities are multiplied by `scale` before the terms see them. The gradient of z is that of
    the SUM of all ranks' losses, as `nt_xent` has it.

    Raises:
        ValueError: If `z_2BD` is no float matrix, or its rows are odd or zero in number.
    """
    check_projections(z_2BD)
    with torch.no_grad(), torch.autocast(z_2BD.device.type, enabled=False):
        views, length_2B1 = Views.of(z_2BD, normalize=normalize, group=group)
        reduce = _semi_hard if is_semi_hard else _all_negatives
        p_2B = views.positive_similarity().mul_(scale)
        negative_2B, positive_slope_2B, gradient_2BD = reduce(views, p_2B, terms=terms, scale=scale, group=group)
        positive_slope_2B += terms.positive_slope(p_2B)
        both_2B = positive_slope_2B + positive_slope_2B.roll(views.num_images)
        views.add_positives_(gradient_2BD, both_2B.unsqueeze(1))
        gradient_2BD.mul_(scale / views.num_own)
        if length_2B1 is not None:
            gradient_2BD = normalized_backward(gradient_2BD, views.own_2BD, length_2B1)
        value = torch.mean(terms.positive(p_2B) + negative_2B)
    loss: Tensor = _WithGradient.apply(z_2BD, value, gradient_2BD)
    return loss, views


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_2BD: Tensor, value: Tensor, gradient_2BD: Tensor) -> Tensor:
        ctx.dtype = z_2BD.dtype
        ctx.save_for_backward(gradient_2BD)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_2BD,) = ctx.saved_tensors
        return (gradient_2BD * grad_output).to(ctx.dtype), None, None


# Both reductions return, for this rank's anchors, the negative term [2B], its slope by the positive
# similarity [2B], and the gradient that negatives give to the rows [2B, D].


def _all_negatives(
    views: Views, p_2B: Tensor, *, terms: PairTerms, scale: float, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    p_2N = all_gather(p_2B, group=group).flatten()
    value_2B, slope_2B = torch.zeros_like(p_2B), torch.zeros_like(p_2B)
    sums = WeightedSums(views)
    same_image = (0, views.num_images, -views.num_images)
    for tile, block in views.similarities(scale=scale):
        weights = torch.zeros_like(block)
        for axis, rows, p in ((1, tile.rows, p_2B[tile.rows, None]), (0, tile.mirror, p_2N[tile.columns])):
            slopes, of_positive = terms.negative_slopes(block, p)
            tile.hide(slopes, *same_image, value=0.0)
            weights += slopes
            if rows is not None:
                terms_of_block = terms.negative(block, p)
                tile.hide(terms_of_block, *same_image, value=0.0)
                value_2B[rows] += terms_of_block.sum(dim=axis)
                slope_2B[rows] += slopes.sum(dim=axis) * of_positive
        sums.add(tile, weights)
    num_negatives = max(1, len(views.all_2ND) - 2)  # one image alone has none: its sums are 0
    return value_2B / num_negatives, slope_2B / num_negatives, sums.total() / num_negatives


def _semi_hard(
    views: Views, p_2B: Tensor, *, terms: PairTerms, scale: float, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    s_2B, index_2B = _closest_beyond_positive(views, p_2B, scale=scale, group=group)
    is_found = s_2B.isfinite()
    s_2B = s_2B.where(is_found, p_2B)  # any finite number: what it gives is dropped
    value_2B = terms.negative(s_2B, p_2B).where(is_found, 0.0)
    slope_2B, of_positive = terms.negative_slopes(s_2B, p_2B)
    slope_2B = slope_2B.where(is_found, 0.0)

    gradient_2BD = views.all_2ND[index_2B] * slope_2B.unsqueeze(1)
    # and what this rank's rows get as the negatives of any rank's anchors
    chosen_2N = all_gather(index_2B, group=group).flatten() - views.first
    is_own = (chosen_2N >= 0) & (chosen_2N < views.num_own)
    slope_2N = all_gather(slope_2B, group=group).flatten().where(is_own, 0.0)
    rows_2N = chosen_2N.clamp(0, views.num_own - 1)
    gradient_2BD.index_add_(0, rows_2N, views.all_2ND * slope_2N.unsqueeze(1))
    return value_2B, slope_2B * of_positive, gradient_2BD


def _closest_beyond_positive(
    views: Views, p_2B: Tensor, *, scale: float, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Return each anchor's semi-hard similarity, -inf if it has none, and the row among all views."""
    p_2N = all_gather(p_2B, group=group).flatten()
    best_2B = torch.full_like(p_2B, -torch.inf)
    index_2B = torch.zeros_like(p_2B, dtype=torch.int64)
    for tile, block in views.similarities(scale=scale):
        tile.hide(block, 0, views.num_images, -views.num_images, value=torch.inf)
        sides = (
            (1, tile.rows, tile.columns.start, p_2B[tile.rows, None]),
            (0, tile.mirror, views.first + tile.rows.start, p_2N[tile.columns]),
        )
        for axis, rows, start, p in sides:
            if rows is None:
                continue
            closest, at = block.masked_fill(block >= p, -torch.inf).max(dim=axis)
            is_closer = closest > best_2B[rows]
            best_2B[rows] = closest.where(is_closer, best_2B[rows])
            index_2B[rows] = (at + start).where(is_closer, index_2B[rows])
    return best_2B, index_2B
