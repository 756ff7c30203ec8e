"""A report's figure as a picture: bars, lines, a heat-map, or settings with their intervals."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tune_spaces.reports.estimate import Estimate
from tune_spaces.reports.figure_data import FigureData

__all__ = ["draw_figure", "draw_histograms"]

DPI: Final = 110
MAX_UPRIGHT: Final = 4  # labels that fit side by side
MAX_NUMBERED: Final = 150  # cells of a heat-map that carry their numbers


def draw_figure(data: FigureData, *, form: Literal["svg", "png"]) -> bytes:
    """Return the figure; ours filled, the paper's numbers, where known, as hollow marks."""
    height = 1.2 + 0.3 * len(data.x) if data.kind == "table" else 4.5
    figure, axes = _blank(8.0, max(3.0, height))
    if data.x and data.series:
        {"bars": _bars, "lines": _lines, "heatmap": _heatmap, "table": _dots}[data.kind](figure, axes, data)
    return _bytes(figure, form)


def draw_histograms(analysis: Mapping[str, Any], *, form: Literal["svg", "png"]) -> bytes:
    """Return the colour histograms of two crops of two images, an arm a panel (paper, Fig. 6)."""
    arms: Mapping[str, Any] = analysis["arms"]
    figure = Figure(figsize=(8, 3), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, arm) in enumerate(arms.items(), start=1):
        axes = figure.add_subplot(1, len(arms), place)
        axes.set_title(f"{name}: {arm['match']:.0%} matched", fontsize="medium")
        for image, crops in enumerate(arm["examples"]):
            for crop, histogram in enumerate(crops):
                axes.plot(histogram, color=f"C{image}", linestyle="-" if crop == 0 else "--", linewidth=1)
        axes.set_xlabel("bin (red, green, blue)")
    return _bytes(figure, form)


def _bars(_: Figure, axes: Any, data: FigureData) -> None:
    places = np.arange(len(data.x))
    width = 0.8 / len(data.series)
    for index, series in enumerate(data.series):
        at = places + (index - (len(data.series) - 1) / 2) * width
        axes.bar(at, _means(series.values), width, yerr=_margins(series.values), capsize=2, label=series.name)
        axes.plot(at, _numbers(series.paper), "D", color="black", fillstyle="none", markersize=4)
    _label_axes(axes, data, places)


def _lines(_: Figure, axes: Any, data: FigureData) -> None:
    places = np.arange(len(data.x))
    for index, series in enumerate(data.series):
        axes.errorbar(places, _means(series.values), _margins(series.values), marker="o", capsize=2, label=series.name)
        axes.plot(
            places, _numbers(series.paper), "D--", color=f"C{index}", fillstyle="none", markersize=4, linewidth=0.6
        )
    _label_axes(axes, data, places)


def _label_axes(axes: Any, data: FigureData, places: Any) -> None:
    rotation = 30 if len(data.x) > MAX_UPRIGHT else 0
    axes.set_xticks(places, [_plain(label) for label in data.x], rotation=rotation, fontsize="small")
    axes.set_xlabel(_plain(data.x_label))
    axes.set_ylabel(_plain(data.y_label))
    axes.grid(axis="y", alpha=0.3)
    if len(data.series) > 1:
        axes.legend(title=_plain(data.series_label), fontsize="small")


def _heatmap(figure: Figure, axes: Any, data: FigureData) -> None:
    cells = np.array([_means(series.values) for series in data.series])
    image = axes.imshow(cells, cmap="viridis", aspect="auto")
    figure.colorbar(image, ax=axes, label=_plain(data.y_label))
    axes.set_xticks(range(len(data.x)), [_plain(label) for label in data.x], rotation=30, fontsize="small")
    axes.set_yticks(range(len(data.series)), [_plain(series.name) for series in data.series], fontsize="small")
    axes.set_xlabel(_plain(data.x_label))
    axes.set_ylabel(_plain(data.series_label))
    if cells.size > MAX_NUMBERED:
        return
    middle = np.nanmean(cells) if np.isfinite(cells).any() else 0.0
    for (row, column), value in np.ndenumerate(cells):
        if math.isfinite(value):
            color = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=color, fontsize="small")


def _dots(_: Figure, axes: Any, data: FigureData) -> None:
    (series,) = data.series
    places = np.arange(len(data.x))[::-1]
    axes.errorbar(_means(series.values), places, xerr=_margins(series.values), fmt="o", capsize=2)
    axes.plot(_numbers(series.paper), places, "D", color="black", fillstyle="none", markersize=4)
    axes.set_yticks(places, [_plain(label) for label in data.x], fontsize="small")
    axes.set_xlabel(_plain(data.x_label))
    axes.grid(axis="x", alpha=0.3)


def _means(values: tuple[Estimate | None, ...]) -> list[float]:
    return [math.nan if value is None else value.mean for value in values]


def _margins(values: tuple[Estimate | None, ...]) -> list[float]:
    """Return half the width of each interval; none is drawn where there is none."""
    return [math.nan if value is None or value.high is None else value.high - value.mean for value in values]


def _numbers(values: tuple[float | None, ...]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read what stands between two as mathematics


def _blank(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _bytes(figure: Figure, form: Literal["svg", "png"]) -> bytes:
    buffer = io.BytesIO()
    # Equal figures have equal bytes, and text stays text.
    with rc_context({"svg.hashsalt": "report", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()
