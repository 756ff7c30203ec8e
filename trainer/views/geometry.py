"""Mirroring and quarter turns (paper, appendix A and Fig. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.transfer import to_device
from trainer.views.chance import Chance

__all__ = ["Mirror", "RandomTurn", "turn"]


class Mirror:
    """Mirrors left and right; nothing but the probability is drawn. torchvision's `hflip`, exactly."""

    def draw(self, chance: Chance) -> tuple[()]:
        """Return nothing."""
        del chance
        return ()

    def apply(self, planes_CMHW: Tensor, drawn: tuple[()]) -> Tensor:
        """Return the mirrored views."""
        del drawn
        return planes_CMHW.flip(3)


class RandomTurn:
    """Turns by a multiple of 90 degrees."""

    def draw(self, chance: Chance) -> tuple[Tensor]:
        """Return quarter turns, (M,) int64: 0, 1, 2 or 3, equally likely."""
        return ((4 * chance.uniform(1)[:, 0]).long(),)

    def apply(self, planes_CMHW: Tensor, drawn: tuple[Tensor]) -> Tensor:
        """Return the turned views."""
        return turn(planes_CMHW, drawn[0])


def turn(planes_CMHW: Tensor, quarters_M: Tensor) -> Tensor:
    """Return the views turned counter-clockwise; torchvision's `rotate` by 90 * `quarters_M`, exactly."""
    turned = planes_CMHW.clone()
    for quarters in (1, 2, 3):
        rows = to_device((quarters_M == quarters).nonzero()[:, 0], planes_CMHW.device)
        turned.index_copy_(1, rows, torch.rot90(planes_CMHW.index_select(1, rows), quarters, (2, 3)))
    return turned
