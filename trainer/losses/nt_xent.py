"""NT-Xent, the loss of SimCLR, in O(N) memory and with the negatives of every rank.

With s_ij the cosine of views i and j, the term of anchor i is lse_i - s_i,pos / temperature,
where lse_i = log sum_{j != i} exp(s_ij / temperature). Its gradient needs only the softmax
P_ij = exp(s_ij / temperature - lse_i), which a second pass over the tiles makes again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from trainer.collectives import all_gather
from trainer.losses.similarity import (
    Tile,
    Views,
    WeightedSums,
    check_projections,
    check_temperature,
    normalized_backward,
)

__all__ = ["nt_xent", "nt_xent_and_views"]

LOG2_E = math.log2(math.e)
MAX_KEPT = 2**22  # entries (16 MiB in float32) that backward gets rather than makes again


def nt_xent(z_2BD: Tensor, *, temperature: float, normalize: bool = True, group: ProcessGroup | None = None) -> Tensor:
    """Return the NT-Xent loss of this rank's anchors (SimCLR, section 2.1, Eq. 1).

    Row k and row k + B are the two views of image k. An anchor is compared with every other view
    of the global batch: its positive and 2(N - 1) negatives.

    Args:
        z_2BD: Projections, any float type and norm. Half precisions are raised to float32, all
            sums are float32 or wider, and float64 stays float64.
        temperature: Divides the similarity; unitless, > 0.
        normalize: Whether similarity is the cosine (the paper's l2 norm, Table 5) or the bare
            inner product. A row of zeros has similarity 0 to all and no gradient.
        group: Ranks that share negatives; None keeps to this process. All ranks hold the same B.

    Returns:
        Scalar, float32 or wider: the MEAN over this rank's 2B anchors. Its mean over ranks is
        Eq. 1 for the global batch.

    Raises:
        ValueError: If `z_2BD` is no float matrix, its rows are odd or zero in number, or
            temperature is not > 0.

    Note:
        The gradient of z is that of the SUM of all ranks' losses, so averaging parameter
        gradients over ranks gives the single-process gradient. Backward does not communicate:
        forward gathered the views (2B x D numbers a rank) and their log-sum-exps (2B), and
        every rank must call backward with the same gradient of its loss. Differentiable once.
        O(N) memory; O(N^2 / W) time a rank.
    """
    return nt_xent_and_views(z_2BD, temperature=temperature, normalize=normalize, group=group)[0]


def nt_xent_and_views(
    z_2BD: Tensor, *, temperature: float, normalize: bool, group: ProcessGroup | None
) -> tuple[Tensor, Views]:
    """Return `nt_xent` and the gathered views it was made of, for measures that need no second gather."""
    check_projections(z_2BD)
    check_temperature(temperature)
    with torch.autocast(z_2BD.device.type, enabled=False):
        views, length_2B1 = Views.of(z_2BD, normalize=normalize, group=group)
        loss: Tensor = _NTXent.apply(z_2BD, views, length_2B1, 1 / temperature, group)
    return loss, views


class _NTXent(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - `apply` takes no keywords
        ctx: Any, z_2BD: Tensor, views: Views, length_2B1: Tensor | None, scale: float, group: ProcessGroup | None
    ) -> Tensor:
        is_plain, num_similarities = views.is_plain(scale), views.num_own * len(views.all_2ND)
        ctx.kept = [] if is_plain and ctx.needs_input_grad[0] and num_similarities <= MAX_KEPT else None
        lse_2B = _log_sum_exp(views, scale, kept=ctx.kept) if is_plain else _safe_log_sum_exp(views, scale)
        ctx.views, ctx.scale, ctx.dtype = views, scale, z_2BD.dtype
        ctx.save_for_backward(all_gather(lse_2B, group=group).flatten(), length_2B1)
        return torch.mean(lse_2B - views.positive_similarity().mul_(scale))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        views: Views = ctx.views
        lse_2N, length_2B1 = ctx.saved_tensors
        with torch.autocast(lse_2N.device.type, enabled=False):
            if views.is_plain(ctx.scale):
                weighted = _weights(ctx.kept or _exponentials(views, ctx.scale), views, lse_2N)
            else:
                weighted = _safe_weights(views, lse_2N, ctx.scale)
            sums = WeightedSums(views)
            for tile, weights in weighted:
                sums.add(tile, weights)
            gradient_2BD = sums.total()
            views.add_positives_(gradient_2BD, -2.0)
            gradient_2BD.mul_(grad_output * (ctx.scale / views.num_own))
            if length_2B1 is not None:
                gradient_2BD = normalized_backward(gradient_2BD, views.own_2BD, length_2B1)
        return gradient_2BD.to(ctx.dtype), None, None, None, None


def _exponentials(views: Views, scale: float) -> Iterator[tuple[Tile, Tensor]]:
    """Yield exp(similarity * scale) of each tile, an anchor's own being 0."""
    for tile, block in views.similarities(scale=scale * LOG2_E):
        block.exp2_()  # torch vectorises it; exp_ takes twice as long
        tile.hide(block, 0, value=0.0)
        yield tile, block


def _log_sum_exp(views: Views, scale: float, *, kept: list[tuple[Tile, Tensor]] | None) -> Tensor:
    """Return lse, `[2B]`; the exponentials go to `kept` if that is a list."""
    total_2B = views.own_2BD.new_zeros(views.num_own)
    for tile, block in _exponentials(views, scale):
        total_2B[tile.rows].add_(block.sum(dim=1))
        if tile.mirror is not None:
            total_2B[tile.mirror].add_(block.sum(dim=0))
        if kept is not None:
            kept.append((tile, block))
    return total_2B.log_()


def _weights(tiles: Iterable[tuple[Tile, Tensor]], views: Views, lse_2N: Tensor) -> Iterator[tuple[Tile, Tensor]]:
    """Yield P_ij + P_ji for each tile of exponentials."""
    inverse_2N = (-lse_2N).exp_()
    inverse_2B = inverse_2N[views.first : views.first + views.num_own]
    weights = inverse_2N.new_empty(0)  # one buffer: the blocks may be kept for another backward
    for tile, block in tiles:
        torch.add(inverse_2B[tile.rows, None], inverse_2N[tile.columns], out=weights.resize_(block.shape))
        yield tile, weights.mul_(block)


def _safe_log_sum_exp(views: Views, scale: float) -> Tensor:
    """Return lse, `[2B]`, for exponents of any size: each row has its running maximum taken off."""
    lse_2B = views.own_2BD.new_full((views.num_own,), -torch.inf)
    for tile, block in views.similarities(scale=scale):
        tile.hide(block, 0, value=-torch.inf)
        lse_2B[tile.rows] = torch.logaddexp(lse_2B[tile.rows], block.logsumexp(dim=1))
        if tile.mirror is not None:
            lse_2B[tile.mirror] = torch.logaddexp(lse_2B[tile.mirror], block.logsumexp(dim=0))
    return lse_2B


def _safe_weights(views: Views, lse_2N: Tensor, scale: float) -> Iterator[tuple[Tile, Tensor]]:
    """Yield P_ij + P_ji for each tile, for exponents of any size."""
    lse_2B = lse_2N[views.first : views.first + views.num_own]
    for tile, block in views.similarities(scale=scale):
        tile.hide(block, 0, value=-torch.inf)
        yield tile, (block - lse_2N[tile.columns]).exp_().add_(block.sub_(lse_2B[tile.rows, None]).exp_())
