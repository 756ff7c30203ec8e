"""Fewer points of a curve that still looks like it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["downsample"]

Point = TypeVar("Point")


def downsample(points: Sequence[Point], max_points: int) -> list[Point]:
    """Return at most `max_points` (>= 2) of the points, evenly spread; the first and the last are kept."""
    if len(points) <= max_points:
        return list(points)
    spacing = (len(points) - 1) / (max_points - 1)
    return [points[round(index * spacing)] for index in range(max_points)]
