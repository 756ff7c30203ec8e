"""The report of one pretraining: what was asked, how well it did against its baselines, in three formats."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, Final

from service.schemas import ExperimentView, TrialView
from trainer import metric_names

__all__ = ["as_html", "as_markdown", "pretrain_report"]

_SHOWN: Final = (
    metric_names.TEST_LINEAR_ACCURACY,
    metric_names.TEST_KNN_ACCURACY,
    metric_names.TEST_FINE_TUNED_ACCURACY,
    metric_names.LINEAR_ACCURACY,
    metric_names.FINE_TUNED_ACCURACY,
    metric_names.KNN_ACCURACY,
    metric_names.RANDOM_ENCODER_KNN_ACCURACY,
    metric_names.RAW_PIXEL_KNN_ACCURACY,
    metric_names.LOSS,
    metric_names.ALIGNMENT,
    metric_names.UNIFORMITY,
    metric_names.H_EFFECTIVE_RANK,
    metric_names.H_COLLAPSED,
    metric_names.PARITY_ERROR,
)
_SMALL: Final = 1e-3  # below it, four decimals say nothing


def pretrain_report(view: ExperimentView, trial: TrialView | None) -> dict[str, Any]:
    """Return the report as data; metrics that were not measured are left out."""
    document = view.model_dump(mode="json")
    metrics: Mapping[str, float | None] = trial.metrics if trial else {}
    gain = _gain(metrics)
    return {
        **{key: document[key] for key in ("id", "name", "state", "reason", "plan", "progress", "best", "spec")},
        "metrics": {key: metrics[key] for key in _SHOWN if metrics.get(key) is not None},
        "knn_gain_over_raw_pixels": gain,
        "verdict": _verdict(gain, is_collapsed=metrics.get(metric_names.H_COLLAPSED) == 1),
    }


def _gain(metrics: Mapping[str, float | None]) -> float | None:
    learned, raw = (metrics.get(key) for key in (metric_names.KNN_ACCURACY, metric_names.RAW_PIXEL_KNN_ACCURACY))
    return learned - raw if learned is not None and raw is not None else None


def _verdict(gain: float | None, *, is_collapsed: bool) -> str:
    if is_collapsed:
        return (
            "h has collapsed: it hardly varies from image to image, or along one direction only. "
            "Lower optim.base_lr, lengthen optim.warmup_epochs, or strengthen the views."
        )
    if gain is None:
        return "Not measured against its baselines yet."
    if gain > 0:
        return f"The encoder knows more than the pixels do: kNN accuracy is {gain:+.3f} against raw pixels."
    return f"The encoder does not beat raw pixels (kNN accuracy {gain:+.3f}): train longer or on more negatives."


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown; what a client named is escaped."""
    rows = "\n".join(f"| `{key}` | {_number(value)} |" for key, value in report["metrics"].items())
    name = "".join(f"\\{character}" if character in "\\`*_[]<>#|!" else character for character in report["name"])
    return (
        f"# {name}\n\n`{report['id']}` is {report['state']}. {report['verdict']}\n\n"
        f"{report['plan'].get('steps')} steps, {report['plan'].get('images')} images, "
        f"{report['plan'].get('negatives_per_anchor')} negatives an anchor.\n\n"
        f"| metric | value |\n|---|---|\n{rows}\n"
    )


def as_html(report: Mapping[str, Any]) -> str:
    """Return the report as one page without scripts; what a client named is escaped."""
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{_number(value)}</td></tr>" for key, value in report["metrics"].items()
    )
    name = html.escape(report["name"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><h1>{name}</h1>"
        f"<p><code>{html.escape(report['id'])}</code> is {html.escape(report['state'])}. "
        f"{html.escape(report['verdict'])}</p><table>{rows}</table></html>"
    )


def _number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or abs(value) >= _SMALL else f"{value:.1e}"
