"""Gaussian blur (paper, appendix A)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from trainer.spec import GaussianBlur
from trainer.transfer import to_device
from trainer.views.chance import Chance

__all__ = ["RandomBlur", "blur", "blur_radius"]

LARGE = 1 << 14  # pixels of a view that is better blurred by itself: the calls are fewer than the misses of the cache


class RandomBlur:
    """Blurs each view with a sigma of its own."""

    def __init__(self, operation: GaussianBlur, *, side: int) -> None:
        self._sigma = operation.sigma
        self._radius = blur_radius(operation.kernel_ratio, side=side)

    def draw(self, chance: Chance) -> tuple[Tensor]:
        """Return sigmas in pixels, (M,) float64, uniform in the operation's range."""
        low, high = self._sigma
        return (low + (high - low) * chance.uniform(1)[:, 0],)

    def apply(self, planes_CMHW: Tensor, drawn: tuple[Tensor]) -> Tensor:
        """Return the blurred views."""
        return blur(planes_CMHW, drawn[0], radius=self._radius)


def blur_radius(kernel_ratio: float, *, side: int) -> int:
    """Return r of the kernel's 2 r + 1 pixels: half of floor(ratio * side), as the reference code has it.

    It is 1 at least (below 20 pixels a tenth of the side would blur nothing), and leaves the
    reflected border inside the image.
    """
    return min(max(1, math.floor(kernel_ratio * side + 1e-9) // 2), side - 1)


def blur(planes_CMHW: Tensor, sigma_M: Tensor, *, radius: int) -> Tensor:
    """Return each view under its own separable Gaussian of 2 `radius` + 1 pixels, borders reflected.

    The views may be overwritten.
    Weights too small to change a sum in this precision count as 0 and are left out: within 1e-6 of
    torchvision's `gaussian_blur` in float32.
    """
    if planes_CMHW.device.type == "cpu" and planes_CMHW.shape[2:].numel() >= LARGE:
        weights_MK = _weights(sigma_M, radius=radius, dtype=planes_CMHW.dtype)
        for view_CHW, weights_K in zip(planes_CMHW.unbind(1), weights_MK, strict=True):
            _blur_(view_CHW, weights_K[weights_K > 0].tolist())
        return planes_CMHW
    order_M = sigma_M.argsort(descending=True, stable=True)
    weights_MK = _weights(sigma_M[order_M], radius=radius, dtype=planes_CMHW.dtype)
    blurred = planes_CMHW.index_select(1, to_device(order_M, planes_CMHW.device))
    for dim in (2, 3):
        blurred = _blur_along(blurred, weights_MK, dim=dim)
    return blurred.index_select(1, to_device(order_M.argsort(), planes_CMHW.device))


def _blur_(view_CHW: Tensor, weights: list[float]) -> None:
    """Blur one view in place; `weights` are those of a pixel and of its neighbours one, two, .. away on either side."""
    side, reach = view_CHW.shape[1], len(weights) - 1
    for dim, border in ((1, [0, 0, reach, reach]), (2, [reach, reach, 0, 0])):
        padded = functional.pad(view_CHW, border, mode="reflect")
        view_CHW.mul_(weights[0])
        for distance, weight in enumerate(weights[1:], start=1):
            for start in (reach - distance, reach + distance):
                view_CHW.add_(padded.narrow(dim, start, side), alpha=weight)


def _blur_along(planes_CMHW: Tensor, weights_MK: Tensor, *, dim: int) -> Tensor:
    """Blur along one axis; views come in descending order of sigma, so each tap concerns the first few."""
    side, radius = planes_CMHW.shape[dim], weights_MK.shape[1] - 1
    border = [0, 0, radius, radius] if dim == 2 else [radius, radius, 0, 0]  # noqa: PLR2004 - H
    padded = functional.pad(planes_CMHW, border, mode="reflect")
    weights_KM = to_device(weights_MK.T.contiguous(), planes_CMHW.device, planes_CMHW.dtype)
    middle, *taps = weights_KM[:, :, None, None].unbind(0)
    total = planes_CMHW * middle
    for distance, num_views in enumerate(weights_MK[:, 1:].count_nonzero(dim=0).tolist(), start=1):
        if num_views == 0:
            break
        some, part = total.narrow(1, 0, num_views), padded.narrow(1, 0, num_views)
        weight_M11 = taps[distance - 1].narrow(0, 0, num_views)
        for start in (radius - distance, radius + distance):
            some.addcmul_(part.narrow(dim, start, side), weight_M11)
    return total


def _weights(sigma_M: Tensor, *, radius: int, dtype: torch.dtype) -> Tensor:
    """Return (M, radius + 1) float64: the weights of a pixel and of those 1..radius away; both sides sum to 1."""
    distance_K = torch.arange(radius + 1, dtype=torch.float64)
    weights_MK = (-0.5 * (distance_K / sigma_M[:, None]).square()).exp_()
    total_M1 = 2 * weights_MK.cumsum(dim=1)[:, -1:] - 1  # the middle, of weight 1, once
    weights_MK /= total_M1
    return weights_MK.masked_fill_(weights_MK < torch.finfo(dtype).eps, 0)
