"""How well views find each other: contrastive accuracy and entropy (SimCLR, Table 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from trainer.losses.similarity import Tile, Views, check_projections, check_temperature, spans

__all__ = ["Agreement", "agreement", "agreement_of"]


class Agreement(NamedTuple):
    """Two measures of a rank's anchors, 0-dim; the mean over ranks of each is that of the global batch."""

    contrastive_accuracy: Tensor  # ratio of anchors closer to their positive than to any other image, 0..1
    entropy: Tensor  # mean over anchors of that of their softmax, nats, 0..ln N


def agreement(
    z_2BD: Tensor, *, temperature: float, normalize: bool = True, group: ProcessGroup | None = None
) -> Agreement:
    """Return the contrastive accuracy and entropy of this rank's anchors (SimCLR, Table 5).

    A first view is an anchor among the N second views of the global batch, its positive
    included, and a second view among the N first views. An anchor that is as close to another
    image as to its own counts as wrong, so collapsed projections score 0.

    Args:
        z_2BD: Projections as in `nt_xent`: row k and row k + B are the views of image k.
        temperature: Divides the similarity in the softmax; unitless, > 0.
        normalize: Whether similarity is the cosine or the bare inner product.
        group: Ranks that share views; None keeps to this process. All ranks hold the same B.

    Returns:
        Means over this rank's 2B anchors, float32 or wider, without gradient.

    Raises:
        ValueError: If `z_2BD` is no float matrix, its rows are odd or zero in number, or
            temperature is not > 0.
    """
    check_projections(z_2BD)
    check_temperature(temperature)
    with torch.autocast(z_2BD.device.type, enabled=False), torch.no_grad():
        views, _ = Views.of(z_2BD, normalize=normalize, group=group)
    return agreement_of(views, temperature=temperature)


@torch.no_grad()
def agreement_of(views: Views, *, temperature: float) -> Agreement:
    """Return `agreement` from views that are gathered already; O(N) memory."""
    with torch.autocast(views.all_2ND.device.type, enabled=False):
        p_2B = views.positive_similarity().div_(temperature)
        softmax = _Softmax(p_2B, is_plain=views.is_plain(1 / temperature))
        for tile, block in views.similarities(scale=1 / temperature, tiles=_tiles_across(views)):
            # the lowest number, not -inf: it is multiplied by its probability of 0
            tile.hide(block, views.num_images, value=torch.finfo(block.dtype).min)
            softmax.add(tile, block)
        return Agreement((p_2B > softmax.largest_other_2B).to(p_2B.dtype).mean(), softmax.entropy().mean())


def _tiles_across(views: Views) -> Iterator[Tile]:
    """Yield tiles of first views against second views, so that each own row meets the N of the other side."""
    half, (height, width) = views.num_images, views.tile_shape
    firsts, seconds = (0, half), (half, 2 * half)
    for rows in spans(*firsts, height):
        for own in spans(*seconds, width):
            yield Tile(rows, slice(views.first + own.start, views.first + own.stop), own)
    for base in range(0, len(views.all_2ND), views.num_own):
        if base == views.first:
            continue
        for anchors, others in ((firsts, seconds), (seconds, firsts)):
            for rows in spans(*anchors, height):
                for columns in spans(*others, width):
                    yield Tile(rows, slice(base + columns.start, base + columns.stop), None)


class _Softmax:
    """Running sums of each anchor's softmax: with x its logits, of exp(x - shift) and x exp(x - shift).

    The shift is 0 where exp cannot overflow, and the running maximum elsewhere.
    """

    def __init__(self, p_2B: Tensor, *, is_plain: bool) -> None:
        self.is_plain = is_plain
        self.shift_2B = torch.zeros_like(p_2B) if is_plain else p_2B.clone()
        self.total_2B = (p_2B - self.shift_2B).exp_()
        self.weighted_2B = p_2B * self.total_2B
        self.largest_other_2B = torch.full_like(p_2B, -torch.inf)

    def add(self, tile: Tile, block: Tensor) -> None:
        sides = [(tile.rows, 1)] if tile.mirror is None else [(tile.rows, 1), (tile.mirror, 0)]
        for rows, axis in sides:
            largest = block.amax(dim=axis)
            self.largest_other_2B[rows] = torch.maximum(self.largest_other_2B[rows], largest)
            if not self.is_plain:
                self._raise_shift(rows, torch.maximum(self.shift_2B[rows], largest))
                self._add_exponentials((block - self.shift_2B[rows].unsqueeze(axis)).exp_(), block, [(rows, axis)])
        if self.is_plain:
            self._add_exponentials(block.exp(), block, sides)

    def entropy(self) -> Tensor:
        return self.total_2B.log() + self.shift_2B - self.weighted_2B / self.total_2B

    def _raise_shift(self, rows: slice, shift: Tensor) -> None:
        decay = (self.shift_2B[rows] - shift).exp_()
        self.total_2B[rows] *= decay
        self.weighted_2B[rows] *= decay
        self.shift_2B[rows] = shift

    def _add_exponentials(self, exponentials: Tensor, block: Tensor, sides: list[tuple[slice, int]]) -> None:
        for rows, axis in sides:
            self.total_2B[rows] += exponentials.sum(dim=axis)
        exponentials.mul_(block)
        for rows, axis in sides:
            self.weighted_2B[rows] += exponentials.sum(dim=axis)
