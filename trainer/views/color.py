"""Colour jitter and greyscale (paper, appendix A)."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.spec import ColorJitter
from trainer.transfer import to_device
from trainer.views.chance import Chance

__all__ = ["Adjustments", "RandomJitter", "adjust_contrast_", "adjust_hue_", "grayscale_", "jitter_"]

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision and the paper's reference code
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def orders(first: int, *others: int) -> list[tuple[int, ...]]:
    """Return all orders of some adjustments, each like the one before but for two places; `first` moves least."""
    if not others:
        return [(first,)]
    found: list[tuple[int, ...]] = []
    rest = orders(*others)
    for place in range(len(others) + 1):
        found += [(*order[:place], first, *order[place:]) for order in rest]
        rest.reverse()
    return found


def _ranks() -> list[int]:
    """Return the rank of each order by its code, its adjustments as digits of base 4; the dearest move least."""
    ranks = [0] * 4**4
    for rank, order in enumerate(orders(HUE, CONTRAST, SATURATION, BRIGHTNESS), start=1):
        ranks[sum(place * kind for place, kind in zip(_PLACES, order, strict=True))] = rank
    return ranks


_PLACES = (64, 16, 4, 1)
_RANKS = _ranks()


class Adjustments(NamedTuple):
    """What is done to the colours of each view, in which order."""

    factors: Tensor  # float64, of brightness, contrast, saturation; 1 changes nothing
    hue: Tensor  # float64, turns of the colour circle, -0.5..0.5
    order: Tensor  # int64, the adjustment that comes 1st, 2nd, 3rd, 4th

    def rank(self) -> Tensor:
        """Return a number for each view's order, (M,) int64, 1..24; those next to each other have most in common."""
        code_M = (self.order * torch.tensor(_PLACES)).sum(dim=1)
        return torch.tensor(_RANKS)[code_M]


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

    Neighbours that have the same adjustment next are adjusted together. Within 1e-5 of
    torchvision's `adjust_*` in the same order, in float32.
    """
    adjust = (adjust_brightness_, adjust_contrast_, adjust_saturation_, adjust_hue_)
    amount_4M = torch.cat([adjustments.factors.T, adjustments.hue[None]])
    amounts = to_device(amount_4M, planes_CMHW.device, planes_CMHW.dtype).unbind()
    for next_M in adjustments.order.T.tolist():
        first = 0
        for kind, views in groupby(next_M):
            number = sum(1 for _ in views)
            adjust[kind](planes_CMHW.narrow(1, first, number), amounts[kind].narrow(0, first, number))
            first += number


def adjust_brightness_(planes_CMHW: Tensor, amount_M: Tensor) -> Tensor:
    """Multiply each view by its factor, in place; torchvision's `adjust_brightness`."""
    return planes_CMHW.mul_(amount_M[:, None, None]).clamp_(0, 1)


def adjust_contrast_(planes_CMHW: Tensor, amount_M: Tensor) -> Tensor:
    """Blend each view with its mean grey, in place; torchvision's `adjust_contrast`."""
    grey_MHW = luma(planes_CMHW)
    return _blend_(planes_CMHW, grey_MHW.copy_(_mean(grey_MHW)), amount_M)


def adjust_saturation_(planes_CMHW: Tensor, amount_M: Tensor) -> Tensor:
    """Blend each view with its grey values, in place; torchvision's `adjust_saturation`."""
    return _blend_(planes_CMHW, luma(planes_CMHW), amount_M)


def _blend_(planes_CMHW: Tensor, grey_MHW: Tensor, amount_M: Tensor) -> Tensor:
    amount_M11 = amount_M[:, None, None]
    return torch.addcmul(grey_MHW.mul_(1 - amount_M11), planes_CMHW, amount_M11, out=planes_CMHW).clamp_(0, 1)


def adjust_hue_(planes_CMHW: Tensor, amount_M: Tensor) -> Tensor:
    """Turn the hue of each view by `amount_M` turns, -0.5..0.5, in place; value and chroma stay.

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
    torch.copysign(hue, green.sub_(blue), out=hue)  # -3..3
    turned_CM = 6 * amount_M.to(hue) - to_device(
        torch.tensor([[0], [2], [-2]]), hue.device, hue.dtype
    )  # from red, green and blue
    turned_CM11 = (turned_CM - 6 * (turned_CM / 6).round())[:, :, None, None]  # -3..3
    torch.add(hue, turned_CM11, out=planes_CMHW)
    planes_CMHW.abs_().sub_(3).abs_().clamp_(1, 2)  # 3 - distance, around the circle
    return torch.addcmul(low.sub_(chroma), planes_CMHW, chroma, out=planes_CMHW)


def grayscale_(planes_CMHW: Tensor) -> None:
    """Set all channels to the luma, in place; torchvision's `rgb_to_grayscale`, to rounding."""
    planes_CMHW.copy_(luma(planes_CMHW).expand_as(planes_CMHW))


def luma(planes_CMHW: Tensor) -> Tensor:
    """Return the grey value of each pixel, (M, H, W)."""
    grey = planes_CMHW[0] * LUMA[0]
    return grey.add_(planes_CMHW[1], alpha=LUMA[1]).add_(planes_CMHW[2], alpha=LUMA[2])


def _mean(grey_MHW: Tensor) -> Tensor:
    """Return the mean of each view, (M, 1, 1), to one part in 2**52 of its number of pixels.

    A sum of floats rounds as torch splits it, by the size of the batch. Of whole numbers that stay
    below 2**53 it is exact.
    """
    num_pixels = grey_MHW[0].numel()
    scale = 2.0 ** (52 - num_pixels.bit_length())
    sum_M11 = (grey_MHW * scale).round_().sum(dim=(1, 2), keepdim=True, dtype=torch.float64)
    return sum_M11.div_(scale * num_pixels).to(grey_MHW)
