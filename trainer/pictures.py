"""Pictures of a run, as the bytes of PNG files: curves, a map of h, confusions.

Drawn through matplotlib's objects; its global state (pyplot) is never touched, so any thread can.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["confusion_png", "curve_png", "embedding_png"]

DPI: Final = 110
MAX_LEGEND: Final = 20  # classes that are named beside a map
MAX_MAP_POINTS: Final = 5000
MAX_TICKS: Final = 40  # classes that are named along a matrix

Point = tuple[float, float]  # (step, value)


def curve_png(
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    x_label: str = "step",
    y_label: str = "",
    baselines: Mapping[str, float] | None = None,
) -> bytes:
    """Return curves over steps, one a name, with `baselines` as dashed lines."""
    figure, axes = _figure(7, 4, title)
    for name, points in series.items():
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(x, y, label=name, linewidth=1.2, marker="." if len(points) <= MAX_LEGEND else None)
    for index, (name, value) in enumerate((baselines or {}).items()):
        axes.axhline(value, label=name, linestyle="--", linewidth=1, color=f"C{len(series) + index}")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, alpha=0.3)
    if len(series) + len(baselines or {}) > 1:
        axes.legend(fontsize="small")
    return _png(figure)


def embedding_png(
    features_MR: NDArray[np.float32],
    labels_M: NDArray[np.int64] | None,
    class_names: Sequence[str] | None,
    *,
    title: str = "Representations h, first two principal components",
) -> bytes:
    """Return h on its first two principal components, a colour a class; every k-th row where there are many."""
    kept = slice(None, None, -(-len(features_MR) // MAX_MAP_POINTS))
    points_M2 = _principal_components(features_MR[kept])
    figure, axes = _figure(7, 5.5, title)
    axes.set_xticks([])
    axes.set_yticks([])
    if labels_M is None or class_names is None:
        axes.scatter(*points_M2.T, s=6, alpha=0.6)
        return _png(figure)
    for index, name in enumerate(class_names):
        chosen = points_M2[labels_M[kept] == index]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=6, alpha=0.7, label=_plain(name), color=_color(index))
    if len(class_names) <= MAX_LEGEND:
        axes.legend(fontsize="x-small", markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def confusion_png(
    truth_M: NDArray[np.int64],
    predicted_M: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    title: str = "Confusions of the linear probe",
) -> bytes:
    """Return the confusion matrix, each row (true class) as shares of its images."""
    K = len(class_names)
    counts_KK = np.bincount(truth_M * K + predicted_M, minlength=K * K).reshape(K, K)
    shares_KK = counts_KK / counts_KK.sum(axis=1, keepdims=True).clip(1)
    side = min(12.0, 3.5 + 0.35 * K)
    figure, axes = _figure(side + 1, side, title)
    shown = axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if K <= MAX_TICKS:
        names = [_plain(name) for name in class_names]
        axes.set_xticks(range(K), names, rotation=90, fontsize="x-small")
        axes.set_yticks(range(K), names, fontsize="x-small")
    figure.colorbar(shown, label="share of the true class")
    return _png(figure)


def _figure(width_inches: float, height_inches: float, title: str) -> tuple[Any, Any]:
    figure = Figure(figsize=(width_inches, height_inches), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(_plain(title), fontsize="medium")
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the same picture, the same bytes
    return buffer.getvalue()


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # else matplotlib reads a formula


def _color(index: int) -> tuple[float, ...]:
    from matplotlib import colormaps

    return tuple(colormaps["tab20"](index % 20))


def _principal_components(features_MR: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each row's coordinates on the two directions of largest variance, signs fixed."""
    centred_MR = features_MR.astype(np.float64) - features_MR.mean(axis=0, dtype=np.float64)
    directions = np.linalg.svd(centred_MR, full_matrices=False)[2][:2]
    directions *= np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])[:, None]
    points: NDArray[np.float64] = centred_MR @ directions.T
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
