"""Colour jitter and greyscale (paper, appendix A)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from trainer.spec import ColorJitter
from trainer.views.chance import Chance

__all__ = ["Adjustments", "RandomJitter", "adjust_hue_", "grayscale_", "jitter_"]

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision and the paper's reference code
_BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class Adjustments(NamedTuple):
    """What is done to the colours of each view, in which order."""

    factors: Tensor  # float64, of brightness, contrast, saturation; 1 changes nothing
    hue: Tensor  # float64, turns of the colour circle, -0.5..0.5
    order: Tensor  # int64, the adjustment that comes 1st, 2nd, 3rd, 4th


class RandomJitter:
    """Brightness, contrast, saturation and hue by random amounts in random order."""

    def __init__(self, operation: ColorJitter) -> None:
        self._strength = operation.strength

    def draw(self, chance: Chance) -> Adjustments:
        """Return factors uniform in max(0, 1 - 0.8 s)..1 + 0.8 s, hue in -0.2 s..0.2 s; 24 equal orders."""
        factor_M3, hue_M1, key_M4 = chance.uniform(8).tensor_split([3, 4], dim=1)
        low, high = max(0.0, 1 - 0.8 * self._strength), 1 + 0.8 * self._strength
        return Adjustments(
            factors=low + (high - low) * factor_M3,
            hue=0.2 * self._strength * (2 * hue_M1[:, 0] - 1),
            order=key_M4.argsort(dim=1),
        )

    def apply(self, planes_CMHW: Tensor, drawn: Adjustments) -> Tensor:
        """Return the views in new colours."""
        jitter_(planes_CMHW, drawn)
        return planes_CMHW


class Greying:
    """Drops colour; nothing but the probability is drawn."""

    def draw(self, chance: Chance) -> tuple[()]:
        """Return nothing."""
        del chance
        return ()

    def apply(self, planes_CMHW: Tensor, drawn: tuple[()]) -> Tensor:
        """Return the views in grey."""
        del drawn
        grayscale_(planes_CMHW)
        return planes_CMHW


def jitter_(planes_CMHW: Tensor, adjustments: Adjustments) -> None:
    """Adjust the colours of each view in its own order, in place.

    Brightness, contrast and saturation are one formula, clamp(a x + b grey(x) + c mean(grey(x))):
    so at each position all views are blended at once, with a = 1, b = c = 0 (which changes no bit)
    where it is hue's turn. Within 1e-5 of torchvision's `adjust_*` in the same order, in float32.
    """
    is_M44 = functional.one_hot(adjustments.order, 4)  # [view, position, adjustment]
    own_M4 = (is_M44[..., :HUE] * adjustments.factors[:, None]).sum(dim=2) + is_M44[..., HUE]
    own_4M, grey_4M, mean_4M = (
        weight_M4.T.contiguous().to(planes_CMHW)
        for weight_M4 in (own_M4, (1 - own_M4) * is_M44[..., SATURATION], (1 - own_M4) * is_M44[..., CONTRAST])
    )
    for position in range(4):
        _blend_(planes_CMHW, own_M=own_4M[position], grey_M=grey_4M[position], mean_M=mean_4M[position])
        _turn_some_(planes_CMHW, adjustments.hue, rows=is_M44[:, position, HUE].nonzero()[:, 0])


def _blend_(planes_CMHW: Tensor, *, own_M: Tensor, grey_M: Tensor, mean_M: Tensor) -> None:
    grey_MHW = luma(planes_CMHW)
    mean_M11 = _mean(grey_MHW).mul_(mean_M[:, None, None])
    grey_MHW.mul_(grey_M[:, None, None]).add_(mean_M11)
    torch.addcmul(grey_MHW, planes_CMHW, own_M[:, None, None], out=planes_CMHW).clamp_(0, 1)


def _turn_some_(planes_CMHW: Tensor, hue_M: Tensor, *, rows: Tensor) -> None:
    if len(rows) == 0:
        return
    device_rows = rows.to(planes_CMHW.device)
    some_CMHW = planes_CMHW.index_select(1, device_rows)
    adjust_hue_(some_CMHW, hue_M[rows])
    planes_CMHW.index_copy_(1, device_rows, some_CMHW)


def adjust_hue_(planes_CMHW: Tensor, hue_M: Tensor) -> None:
    """Turn the hue of each view by `hue_M` turns, -0.5..0.5, in place; value and chroma stay.

    With chroma C = max - min, hue in sixths of a turn is sign(g - b) (1 + (g + b - r - min) / C),
    and a channel is min + C clamp(2 - |distance from its own hue|, 0, 1). It equals the textbook's
    case by case conversion to HSV and back, within 1e-5 of torchvision's `adjust_hue` in float32.
    """
    red, green, blue = planes_CMHW.unbind(0)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    chroma = torch.maximum(red, green)
    torch.maximum(chroma, blue, out=chroma)
    chroma.sub_(low)
    hue = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=torch.finfo(chroma.dtype).tiny)).add_(1)
    torch.copysign(hue, green - blue, out=hue)
    hue.add_((6 * hue_M).to(hue)[:, None, None])
    hue.sub_((hue / 6).round_().mul_(6))  # -3..3
    torch.sub(2, hue.abs(), out=red)
    torch.sub(hue, 2, out=green).abs_().sub_(3).abs_().sub_(1)  # 2 - distance, around the circle
    torch.add(hue, 2, out=blue).abs_().sub_(3).abs_().sub_(1)
    torch.addcmul(low, planes_CMHW.clamp_(0, 1), chroma, out=planes_CMHW)


def grayscale_(planes_CMHW: Tensor) -> None:
    """Set all channels to the luma, in place; torchvision's `rgb_to_grayscale`, to rounding."""
    planes_CMHW.copy_(luma(planes_CMHW).expand_as(planes_CMHW))


def luma(planes_CMHW: Tensor) -> Tensor:
    """Return the grey value of each pixel, (M, H, W)."""
    grey = planes_CMHW[0] * LUMA[0]
    return grey.add_(planes_CMHW[1], alpha=LUMA[1]).add_(planes_CMHW[2], alpha=LUMA[2])


def _mean(grey_MHW: Tensor) -> Tensor:
    """Return the mean of each view, (M, 1, 1), summed over a fixed tree.

    torch's own sum may split its work by the size of the batch, and so round differently.
    """
    sums = grey_MHW.flatten(1)
    num_pixels = sums.shape[1]
    while (width := sums.shape[1]) > 1:
        half = width // 2
        folded = sums[:, :half] + sums[:, half : 2 * half]
        if width % 2:
            folded[:, :1] += sums[:, -1:]
        sums = folded
    return (sums / num_pixels)[:, :, None]
