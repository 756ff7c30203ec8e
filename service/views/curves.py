"""Metrics as JSON, made piece by piece: a hundred thousand points must not hold up who waits for the interpreter."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pydantic import TypeAdapter

from service.ports import MetricPoint
from service.schemas import PointView
from service.views.downsampling import downsample

__all__ = ["metrics_json"]

POINTS_AT_ONCE: Final = 2_000  # a few milliseconds, in which no other thread has a turn

_POINTS: Final = TypeAdapter(list[PointView])


def metrics_json(trial: str | None, series: Mapping[str, Sequence[MetricPoint]], *, max_points: int | None) -> bytes:
    """Return the JSON of a MetricsView, each curve thinned to `max_points`. Call it off the event loop."""
    curves = (
        json.dumps(key).encode() + b":[" + b",".join(_pieces(points, max_points)) + b"]"
        for key, points in series.items()
    )
    return b'{"trial":' + json.dumps(trial).encode() + b',"series":{' + b",".join(curves) + b"}}"


def _pieces(points: Sequence[MetricPoint], max_points: int | None) -> Iterator[bytes]:
    kept = points if max_points is None else downsample(points, max_points)
    for start in range(0, len(kept), POINTS_AT_ONCE):
        views = [
            PointView(step=point.step, value=point.value if math.isfinite(point.value) else None, at=point.at)
            for point in kept[start : start + POINTS_AT_ONCE]
        ]
        yield _POINTS.dump_json(views)[1:-1]
