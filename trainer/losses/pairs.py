"""The engine of the objectives that judge pairs one by one (SimCLR, Table 2, rows 2 and 3).

The term of anchor i is `positive(p_i)` plus a reduction over its negatives j of
`negative(s_ij, p_i)`, where p_i is the similarity of i and its positive. The reduction is

- the MEAN over all 2(N - 1) negatives, or
- with semi-hard mining (Schroff et al. 2015; SimCLR, section 5.1) the one negative that is closest
  among those farther from the anchor than its positive, and 0 if there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from trainer.collectives import all_gather
from trainer.losses.similarity import Tile, Views, normalized_backward

__all__ = ["PairTerms", "pair_loss"]


class PairTerms(Protocol):
    """The two terms of an objective and their slopes, elementwise; `p` broadcasts against `s`."""

    def positive(self, p: Tensor) -> Tensor: ...
    def positive_slope(self, p: Tensor) -> Tensor: ...
    def negative(self, s: Tensor, p: Tensor) -> Tensor: ...
    def negative_slope(self, s: Tensor, p: Tensor) -> Tensor: ...  # by s

    slope_of_positive: float  # d negative / dp as a multiple of d negative / ds


def pair_loss(
    z_2BD: Tensor,
    *,
    terms: PairTerms,
    views: Views,
    length_2B1: Tensor | None,
    is_semi_hard: bool,
    group: ProcessGroup | None,
) -> Tensor:
    """Return the mean of the terms of this rank's 2B anchors; `views` and `length_2B1` are made of `z_2BD`.

    The gradient of z is that of the SUM of all ranks' losses, as in `nt_xent`.
    """
    function = _MinedPairs if is_semi_hard else _AllPairs
    loss: Tensor = function.apply(z_2BD, terms, views, length_2B1, group)  # type: ignore[no-untyped-call]
    return loss
