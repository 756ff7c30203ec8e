"""The views that anchors are compared with, and the tiles in which their similarities are made.

No more than one tile of the 2B x 2N similarity matrix exists at a time. The matrix of a rank's
own views is symmetric, so only tiles on and above its diagonal are made, and each serves its rows
and its columns; the tiles against other ranks' views serve their rows.

                own views    | views of the other ranks
    own views   [d m m m]    |  [r r r r] [r r r r]
                [  d m m]    |  [r r r r] [r r r r]      d: diagonal, square   m: mirrored   r: rows only
                [    d m]    |  [r r r r] [r r r r]      m and r: many times as wide as high
                [      d]    |  [r r r r] [r r r r]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from trainer.collectives import all_gather, rank
from trainer.matrix_product import product

__all__ = ["Tile", "Views", "WeightedSums", "check_projections", "check_temperature", "normalized_backward", "spans"]

MIN_LENGTH = 1e-12  # a shorter row has no direction
MAX_PLAIN_EXPONENT = 64.0  # exp(+-64) and sums of a billion of them are normal float32 numbers
CPU_TILE = (256, 2048)  # rows and columns; a float32 tile of 2 MiB stays in cache
DEVICE_TILE = (4096, 4096)  # elsewhere launching a kernel costs more than a cache miss


def check_projections(z_2BD: Tensor) -> None:
    """Raise ValueError unless `z_2BD` is a float matrix of B >= 1 first views, then B second views."""
    if z_2BD.dim() != 2 or not z_2BD.is_floating_point():  # noqa: PLR2004 - a matrix has two
        raise ValueError(f"projections are a matrix [2B, D] of floats, not {z_2BD.dtype} {list(z_2BD.shape)}")
    if len(z_2BD) == 0 or len(z_2BD) % 2:
        raise ValueError(f"projections come in pairs of views, so their rows are even and not 0: got {len(z_2BD)}")


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless `temperature` is above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature divides the similarity and must be > 0, got {temperature}")


def _normalized(z_2BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows in unit length and their lengths `[2B, 1]`.

    A row shorter than 1e-12 becomes 0 and has no gradient; a row that is not finite becomes NaN.
    """
    # by the largest entry first: the squares of wide-ranging input would overflow or vanish
    largest_2B1 = z_2BD.abs().amax(dim=1, keepdim=True)
    is_zero = largest_2B1 < MIN_LENGTH
    unit_2BD = z_2BD / largest_2B1.masked_fill_(is_zero, torch.inf)
    length_2B1 = torch.linalg.vector_norm(unit_2BD, dim=1, keepdim=True).masked_fill_(is_zero, 1.0)
    return unit_2BD.div_(length_2B1), length_2B1.mul_(largest_2B1)


def normalized_backward(gradient_2BD: Tensor, unit_2BD: Tensor, length_2B1: Tensor) -> Tensor:
    """Return the gradient of the rows before they were brought to unit length; overwrites its first argument."""
    radial_2B1 = torch.linalg.vecdot(gradient_2BD, unit_2BD).unsqueeze(1)
    return gradient_2BD.addcmul_(unit_2BD, radial_2B1, value=-1.0).div_(length_2B1)


def spans(start: int, stop: int, length: int) -> Iterator[slice]:
    """Return slices of at most `length` that cover start..stop."""
    return (slice(low, min(low + length, stop)) for low in range(start, stop, length))


@dataclass(frozen=True)
class Tile:
    """A block of similarities: this rank's `rows` against the `columns` of all views."""

    rows: slice
    columns: slice
    own: slice | None  # the columns, counted as rows of this rank; None if they are another's

    @property
    def mirror(self) -> slice | None:
        """Return the own rows that the transpose of this tile serves; None on the diagonal."""
        return None if self.own == self.rows else self.own

    def hide(self, block: Tensor, *offsets: int, value: float) -> None:
        """Set the entries of `block` whose own column is their row + one of `offsets`."""
        if self.own is None:
            return
        height, width = block.shape
        for offset in offsets:
            diagonal = self.rows.start + offset - self.own.start
            if -height < diagonal < width:
                block.diagonal(diagonal).fill_(value)


@dataclass(frozen=True)
class Views:
    """The projections of the global batch, without gradient, as one rank sees them.

    Rank after rank, each with its first views and then its second: `[W, 2, B, D]`, flattened.
    """

    all_2ND: Tensor  # noqa: N815 - a shape suffix
    first: int  # where this rank's rows start
    num_own: int  # 2B
    is_normalized: bool

    @classmethod
    def of(cls, z_2BD: Tensor, *, normalize: bool, group: ProcessGroup | None) -> tuple[Views, Tensor | None]:
        """Return the views of all ranks in float32 or wider, and the lengths `[2B, 1]` of the own if normalised.

        One all-gather of 2B x D numbers a rank. A row shorter than 1e-12 becomes 0 and has no
        gradient; a row that is not finite becomes NaN.
        """
        z_2BD = z_2BD.detach().to(torch.promote_types(z_2BD.dtype, torch.float32))
        z_2BD, length_2B1 = _normalized(z_2BD) if normalize else (z_2BD, None)
        all_2ND = all_gather(z_2BD, group=group).flatten(0, 1)
        first = rank(group) * len(z_2BD)
        return cls(all_2ND, first=first, num_own=len(z_2BD), is_normalized=normalize), length_2B1

    @property
    def own_2BD(self) -> Tensor:  # noqa: N802 - a shape suffix
        """Return this rank's rows."""
        return self.all_2ND[self.first : self.first + self.num_own]

    @property
    def num_images(self) -> int:
        """Return B, the images of this rank; row k and row k + B are views of the same."""
        return self.num_own // 2

    def is_plain(self, scale: float) -> bool:
        """Return whether exp(similarity * scale) can neither overflow nor vanish, so needs no shift."""
        return self.is_normalized and scale <= MAX_PLAIN_EXPONENT

    def positive_similarity(self) -> Tensor:
        """Return the similarity of each own row and its positive, `[2B]`."""
        first_BD, second_BD = self.own_2BD.chunk(2)
        p_B: Tensor = torch.linalg.vecdot(first_BD, second_BD)
        return p_B.repeat(2)

    def add_positives_(self, target_2BD: Tensor, weight_2B1: Tensor | float) -> None:
        """Add to each own row of `target_2BD` its positive times `weight_2B1`, in place."""
        if not isinstance(weight_2B1, Tensor):
            weight_2B1 = target_2BD.new_full((1, 1), weight_2B1)  # made on the device: a copy would wait for it
        weight_2B1 = weight_2B1.expand(self.num_own, 1)
        positives = reversed(self.own_2BD.chunk(2))
        for target_BD, positive_BD, weight_B1 in zip(target_2BD.chunk(2), positives, weight_2B1.chunk(2), strict=True):
            target_BD.addcmul_(positive_BD, weight_B1)

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Return the most rows and columns of a tile."""
        return CPU_TILE if self.all_2ND.device.type == "cpu" else DEVICE_TILE

    def tiles(self) -> Iterator[Tile]:
        """Yield, in fixed order, the tiles that together give each own row all columns."""
        height, width = self.tile_shape
        others = [*spans(0, self.first, width), *spans(self.first + self.num_own, len(self.all_2ND), width)]
        for rows in spans(0, self.num_own, height):
            for own in (rows, *spans(rows.stop, self.num_own, width)):
                yield Tile(rows, slice(self.first + own.start, self.first + own.stop), own)
            for columns in others:
                yield Tile(rows, columns, None)

    def similarities(self, *, scale: float, tiles: Iterable[Tile] | None = None) -> Iterator[tuple[Tile, Tensor]]:
        """Yield each tile and its similarities times `scale`."""
        own_2BD = self.own_2BD
        for tile in tiles or self.tiles():
            yield tile, product(own_2BD[tile.rows] * scale, self.all_2ND[tile.columns].T)


class WeightedSums:
    """For each own row the sum of all views, weighted tile by tile, mirrored tiles both ways."""

    def __init__(self, views: Views) -> None:
        """Begin with 0."""
        self._views = views
        self._sums_2BD = torch.zeros_like(views.own_2BD)
        # Transposed: a product with the transpose of a tile would first copy it.
        self._mirrored_D2B = views.own_2BD.new_zeros(views.own_2BD.shape[::-1])

    def add(self, tile: Tile, weights: Tensor) -> None:
        """Add what the weights of one tile make of its views."""
        self._sums_2BD[tile.rows].add_(product(weights, self._views.all_2ND[tile.columns]))
        if tile.mirror is not None:
            self._mirrored_D2B[:, tile.mirror].add_(product(self._views.own_2BD[tile.rows].T, weights))

    def total(self) -> Tensor:
        """Return the sums, `[2B, D]`; nothing is added after."""
        return self._sums_2BD.add_(self._mirrored_D2B.T)
