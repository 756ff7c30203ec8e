"""Transformations: for each operation of a spec, what is drawn and what is done to pixels."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from torch import Tensor

from trainer.spec import (
    ColorJitter,
    CropResize,
    Cutout,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    HorizontalFlip,
    Operation,
    Rotation,
    Sobel,
)
from trainer.views.blur import RandomBlur
from trainer.views.chance import Chance
from trainer.views.color import Greying, RandomJitter
from trainer.views.corruption import AddNoise, EdgeFilter, RandomCutout
from trainer.views.crop import RandomCrop
from trainer.views.geometry import Mirror, RandomTurn

__all__ = ["Transformation", "build_transformation"]


D = TypeVar("D", bound="tuple[Tensor, ...]")


class Transformation(Protocol[D]):
    """An operation on views, each by its own chance.

    What is drawn is a tuple of tensors, (M, ...) on the CPU: what to do to each of M views. Pixels
    come as planes, (3, M, H, W) floats in 0..1 and contiguous: arithmetic on a channel of all views
    is then one pass over memory. What becomes of a view must not depend on the views beside it, not
    in one bit: so sums are made over fixed trees, and nothing is multiplied as a matrix.
    """

    def draw(self, chance: Chance) -> D:
        """Return what to do to each view."""

    def apply(self, planes_CMHW: Tensor, drawn: D) -> Tensor:
        """Return the transformed views, in 0..1; `planes_CMHW` may be overwritten."""


def build_transformation(operation: Operation, *, side: int) -> Transformation[Any]:  # noqa: PLR0911 - one for each
    """Return what an operation does to images of `side` by `side` pixels, whatever its `p` and `branch`."""
    match operation:
        case CropResize():
            return RandomCrop(operation, side=side)
        case HorizontalFlip():
            return Mirror()
        case ColorJitter():
            return RandomJitter(operation)
        case Grayscale():
            return Greying()
        case GaussianBlur():
            return RandomBlur(operation, side=side)
        case Cutout():
            return RandomCutout(operation, side=side)
        case Rotation():
            return RandomTurn()
        case GaussianNoise():
            return AddNoise(operation)
        case Sobel():
            return EdgeFilter()
