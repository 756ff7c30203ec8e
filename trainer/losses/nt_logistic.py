"""NT-Logistic: each pair is a yes-or-no question (SimCLR, Table 2, second row)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import softplus

from trainer.losses.pairs import pair_loss_and_views
from trainer.losses.similarity import Views, check_temperature

__all__ = ["nt_logistic", "nt_logistic_and_views"]


def nt_logistic(
    z_2BD: Tensor,
    *,
    temperature: float,
    normalize: bool = True,
    semi_hard: bool = False,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Return the NT-Logistic loss of this rank's anchors (SimCLR, Tables 2 and 4).

    The term of an anchor is `-log sigmoid(p / temperature)` for its positive plus, reduced over
    its negatives, `-log sigmoid(-s / temperature)`.

    Args:
        z_2BD: Projections as in `nt_xent`: row k and row k + B are the views of image k.
        temperature: Divides the similarity; unitless, > 0.
        normalize: Whether similarity is the cosine or the bare inner product.
        semi_hard: Whether only the semi-hard negative counts (section 5.1): the closest of those
            farther from the anchor than its positive; an anchor without one keeps its positive term.
        group: Ranks that share negatives; None keeps to this process. All ranks hold the same B.

    Returns:
        Scalar, float32 or wider: the MEAN over this rank's 2B anchors; over an anchor's negatives
        the MEAN of 2(N - 1) terms, or the one semi-hard term. Its mean over ranks is the value for
        the global batch.

    Raises:
        ValueError: If `z_2BD` is no float matrix, its rows are odd or zero in number, or
            temperature is not > 0.

    Note:
        Gradients as `nt_xent` has them: of the sum over ranks, no communication in backward, the
        same gradient of the loss on every rank. O(N) memory.
    """
    return nt_logistic_and_views(z_2BD, temperature=temperature, normalize=normalize, semi_hard=semi_hard, group=group)[
        0
    ]


def nt_logistic_and_views(
    z_2BD: Tensor, *, temperature: float, normalize: bool, semi_hard: bool, group: ProcessGroup | None
) -> tuple[Tensor, Views]:
    """Return `nt_logistic` and the gathered views it was made of."""
    check_temperature(temperature)
    return pair_loss_and_views(
        z_2BD, terms=_Logistic(), scale=1 / temperature, normalize=normalize, is_semi_hard=semi_hard, group=group
    )


@dataclass(frozen=True)
class _Logistic:
    def positive(self, p: Tensor) -> Tensor:
        return softplus(-p)

    def positive_slope(self, p: Tensor) -> Tensor:
        return -torch.sigmoid(-p)

    def negative(self, s: Tensor, p: Tensor) -> Tensor:  # noqa: ARG002 - it does not depend on the positive
        return softplus(s)

    def negative_slopes(self, s: Tensor, p: Tensor) -> tuple[Tensor, float]:  # noqa: ARG002 - as above
        return torch.sigmoid(s), 0.0
