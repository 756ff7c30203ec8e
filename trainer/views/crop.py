"""Crop a random box and resize it back to the side of the image (paper, appendix A)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.spec import CropResize
from trainer.transfer import to_device
from trainer.views.chance import Chance

__all__ = ["Boxes", "RandomCrop", "crop_resize"]

NUM_TRIES = 10  # as torchvision's RandomResizedCrop


class Boxes(NamedTuple):
    """Where to crop, whole pixels: all (M,) int64."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


class RandomCrop:
    """Draws boxes as torchvision's `RandomResizedCrop` does, and crops."""

    def __init__(self, operation: CropResize, *, side: int) -> None:
        self._operation = operation
        self._side = side

    def draw(self, chance: Chance) -> Boxes:
        """Return boxes: area uniform in `scale` and aspect log-uniform in `ratio`.

        The first of ten tries that fits the image counts; if none does, the largest central box
        within `ratio`. Then every place is equally likely.
        """
        tries_MT2, place_M2 = chance.uniform(2 * NUM_TRIES + 2).tensor_split([2 * NUM_TRIES], dim=1)
        tries_MT2 = tries_MT2.reshape(-1, NUM_TRIES, 2)
        (low, high), (flattest, tallest) = self._operation.scale, map(math.log, self._operation.ratio)
        area_MT = (low + (high - low) * tries_MT2[..., 0]) * self._side**2
        ratio_MT = (flattest + (tallest - flattest) * tries_MT2[..., 1]).exp_()
        sides_MT2 = torch.stack([area_MT / ratio_MT, area_MT * ratio_MT], dim=-1).sqrt_().round_()
        fits_MT = ((sides_MT2 > 0) & (sides_MT2 <= self._side)).all(dim=-1)
        first_M = fits_MT.to(torch.uint8).argmax(dim=1)
        sides_M2 = sides_MT2[torch.arange(len(first_M)), first_M]
        sides_M2[~fits_MT.any(dim=1)] = torch.tensor(self._largest_sides(), dtype=torch.float64)
        places_M2 = (place_M2 * (self._side - sides_M2 + 1)).floor_()
        places_M2[~fits_MT.any(dim=1)] = ((self._side - sides_M2) / 2).floor_()[~fits_MT.any(dim=1)]
        (top, left), (height, width) = places_M2.long().unbind(1), sides_M2.long().unbind(1)
        return Boxes(top=top, left=left, height=height, width=width)

    def _largest_sides(self) -> tuple[float, float]:
        """Return height and width of the largest box whose ratio, width to height, is allowed."""
        lowest, highest = self._operation.ratio
        if lowest > 1:
            return max(1.0, round(self._side / lowest)), float(self._side)
        return float(self._side), max(1.0, round(self._side * min(1.0, highest)))

    def apply(self, planes_CMHW: Tensor, drawn: Boxes) -> Tensor:
        """Return each view cropped to its own box and resized."""
        return crop_resize(planes_CMHW, drawn)


def crop_resize(planes_CMHW: Tensor, boxes: Boxes) -> Tensor:
    """Return the boxes, resized to the side of the image: bilinear, half-pixel centres.

    Pixels outside a box are never read. A box is no larger than the image, so nothing shrinks and
    antialiasing would change nothing: within 1e-5 of torchvision's `resized_crop` in float32 and
    1e-12 in float64, either way.
    """
    start_2M, length_2M = torch.cat([boxes.left, boxes.top]), torch.cat([boxes.width, boxes.height])
    columns, rows = zip(*(taps.chunk(2) for taps in _taps(start_2M, length_2M, side=planes_CMHW.shape[2])), strict=True)
    return _resized_rows(_resized_rows(planes_CMHW.transpose(2, 3), *columns).transpose(2, 3), *rows)


def _resized_rows(planes_CMHW: Tensor, low_MH: Tensor, high_MH: Tensor, weight_MH: Tensor) -> Tensor:
    """Return rows blended of two each; whole rows are copied faster than single pixels."""
    num_channels, num_views, side, _ = planes_CMHW.shape
    plane_CM1 = torch.arange(num_channels * num_views).reshape(num_channels, num_views, 1) * side
    rows = planes_CMHW.reshape(-1, side)
    low, high = (
        rows.index_select(0, to_device((plane_CM1 + index_MH).flatten(), rows.device)).view(planes_CMHW.shape)
        for index_MH in (low_MH, high_MH)
    )
    return low.lerp_(high, to_device(weight_MH[:, :, None], low.device, low.dtype))


def _taps(start_M: Tensor, length_M: Tensor, *, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each output pixel of one axis, the two input pixels (M, side) and the second's weight."""
    centres = torch.arange(side, dtype=torch.float64) + 0.5
    position_MS = (centres * (length_M[:, None] / side) - 0.5).clamp_(min=0)
    low_MS = position_MS.floor()
    last_M1 = (length_M[:, None] - 1).to(torch.float64)
    high_MS = torch.minimum(low_MS + 1, last_M1)
    start_M1 = start_M[:, None]
    return start_M1 + low_MS.long(), start_M1 + high_MS.long(), position_MS - low_MS
