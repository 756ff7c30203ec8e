"""Cutout, Gaussian noise and Sobel filtering (paper, Fig. 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from trainer.seeding import normal_of
from trainer.spec import Cutout, GaussianNoise
from trainer.transfer import to_device
from trainer.views.chance import Chance

__all__ = ["AddNoise", "EdgeFilter", "RandomCutout", "Squares", "cut_out_", "sobel"]

GREY = 0.5


class Squares(NamedTuple):
    """The part of a square that lies in the image: rows top..bottom - 1, columns left..right - 1, (M,) int64."""

    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor


class RandomCutout:
    """Covers a square; its middle is anywhere in the image, so it may be cut by the border."""

    def __init__(self, operation: Cutout, *, side: int) -> None:
        self._side = side
        self._size = max(1, round(operation.size_ratio * side))

    def draw(self, chance: Chance) -> Squares:
        """Return squares whose middle is a pixel, each equally likely (DeVries and Taylor 2017, section 3.2)."""
        start_M2 = (chance.uniform(2) * self._side).long() - self._size // 2
        (top, left), (bottom, right) = (
            edges_M2.clamp(0, self._side).unbind(1) for edges_M2 in (start_M2, start_M2 + self._size)
        )
        return Squares(top=top, bottom=bottom, left=left, right=right)

    def apply(self, planes_CMHW: Tensor, drawn: Squares) -> Tensor:
        """Return the views with a grey square each."""
        cut_out_(planes_CMHW, drawn)
        return planes_CMHW


def cut_out_(planes_CMHW: Tensor, squares: Squares) -> None:
    """Set each view's square to grey, 0.5, in place; torchvision's `erase`, exactly."""
    pixel_S = torch.arange(planes_CMHW.shape[-1])
    covered_MH = (pixel_S >= squares.top[:, None]) & (pixel_S < squares.bottom[:, None])
    covered_MW = (pixel_S >= squares.left[:, None]) & (pixel_S < squares.right[:, None])
    device, dtype = planes_CMHW.device, planes_CMHW.dtype
    covered = to_device(covered_MH[:, :, None], device, dtype) * to_device(covered_MW[:, None, :], device, dtype)
    planes_CMHW.mul_(1 - covered).add_(covered.mul_(GREY))


class AddNoise:
    """Adds independent normal noise to each pixel and channel, and clamps to 0..1."""

    def __init__(self, operation: GaussianNoise) -> None:
        self._std = operation.std

    def draw(self, chance: Chance) -> tuple[Tensor]:
        """Return the keys of the noise, (M,): it is as large as the views, and made when it is added."""
        return (chance.keys(),)

    def apply(self, planes_CMHW: Tensor, drawn: tuple[Tensor]) -> Tensor:
        """Return the noisy views; torchvision's `gaussian_noise` of the same noise, to rounding."""
        num_channels, _, height, width = planes_CMHW.shape
        noise_MX = normal_of(drawn[0], count=num_channels * height * width).mul_(self._std)
        noise_MX = to_device(noise_MX, planes_CMHW.device, planes_CMHW.dtype)
        return planes_CMHW.add_(noise_MX.view(-1, num_channels, height, width).transpose(0, 1)).clamp_(0, 1)


class EdgeFilter:
    """Replaces each channel by the size of its gradient; nothing but the probability is drawn."""

    def draw(self, chance: Chance) -> tuple[()]:
        """Return nothing."""
        del chance
        return ()

    def apply(self, planes_CMHW: Tensor, drawn: tuple[()]) -> Tensor:
        """Return the edges of the views."""
        del drawn
        return sobel(planes_CMHW)


def sobel(planes_CMHW: Tensor) -> Tensor:
    """Return the magnitude of Sobel's gradient of each channel, divided by 4 and clamped to 1; borders repeated.

    A step from 0 to 1 along an axis has magnitude 4. torchvision has no such filter; it equals a
    convolution with Sobel's kernels to rounding.
    """
    padded = functional.pad(planes_CMHW, [1, 1, 1, 1], mode="replicate")
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    x = across[..., :-2, :] + across[..., 1:-1, :] * 2 + across[..., 2:, :]
    y = down[..., :-2] + down[..., 1:-1] * 2 + down[..., 2:]
    return x.square_().add_(y.square_()).sqrt_().div_(4).clamp_(max=1)
