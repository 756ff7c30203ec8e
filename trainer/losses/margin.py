"""The margin triplet loss (SimCLR, Table 2, third row; Schroff et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from trainer.losses.pairs import pair_loss_and_views
from trainer.losses.similarity import Views

__all__ = ["margin_triplet", "margin_triplet_and_views"]


def margin_triplet(
    z_2BD: Tensor,
    *,
    margin: float,
    normalize: bool = True,
    semi_hard: bool = False,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Return the margin triplet loss of this rank's anchors (SimCLR, Tables 2 and 4).

    The term of an anchor is, reduced over its negatives, `max(s - p + margin, 0)` with p the
    similarity of its positive and s that of the negative.

    Args:
        z_2BD: Projections as in `nt_xent`: row k and row k + B are the views of image k.
        margin: By how much the positive is to be closer; in units of similarity, > 0.
        normalize: Whether similarity is the cosine or the bare inner product.
        semi_hard: Whether only the semi-hard negative counts (section 5.1): the closest of those
            farther from the anchor than its positive; an anchor without one has term 0.
        group: Ranks that share negatives; None keeps to this process. All ranks hold the same B.

    Returns:
        Scalar, float32 or wider: the MEAN over this rank's 2B anchors; over an anchor's negatives
        the MEAN of 2(N - 1) terms, zeros included, or the one semi-hard term. Its mean over ranks
        is the value for the global batch.

    Raises:
        ValueError: If `z_2BD` is no float matrix, its rows are odd or zero in number, or margin
            is not > 0.

    Note:
        Gradients as `nt_xent` has them: of the sum over ranks, no communication in backward, the
        same gradient of the loss on every rank. O(N) memory.
    """
    return margin_triplet_and_views(z_2BD, margin=margin, normalize=normalize, semi_hard=semi_hard, group=group)[0]


def margin_triplet_and_views(
    z_2BD: Tensor, *, margin: float, normalize: bool, semi_hard: bool, group: ProcessGroup | None
) -> tuple[Tensor, Views]:
    """Return `margin_triplet` and the gathered views it was made of."""
    if not margin > 0:
        raise ValueError(f"margin must be > 0, got {margin}")
    return pair_loss_and_views(
        z_2BD, terms=_Hinge(margin), scale=1.0, normalize=normalize, is_semi_hard=semi_hard, group=group
    )


@dataclass(frozen=True)
class _Hinge:
    margin: float

    def positive(self, p: Tensor) -> Tensor:
        return torch.zeros_like(p)

    def positive_slope(self, p: Tensor) -> Tensor:
        return torch.zeros_like(p)

    def negative(self, s: Tensor, p: Tensor) -> Tensor:
        return (s - p).add_(self.margin).relu_()

    def negative_slopes(self, s: Tensor, p: Tensor) -> tuple[Tensor, float]:
        return ((s - p) > -self.margin).to(s.dtype), -1.0
