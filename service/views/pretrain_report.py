"""The report of one pretraining: what was asked, how well it did against its baselines, in three formats."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
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
_BASELINES: Final = {
    metric_names.RAW_PIXEL_KNN_ACCURACY: "raw pixels",
    metric_names.RANDOM_ENCODER_KNN_ACCURACY: "the untrained encoder",
}
_SURE: Final = 0.05  # a paired p below it is a difference
_SMALL: Final = 1e-3  # below it, four decimals say nothing


def pretrain_report(
    view: ExperimentView, trial: TrialView | None, *, paired_p: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return the report as data; metrics that were not measured are left out.

    Args:
        view: Of the experiment.
        trial: Its trial, None before the first exists.
        paired_p: Metric of a baseline -> p of McNemar's test (mid-p) of h against it, image by image;
            runs of an earlier version left none.
    """
    document = view.model_dump(mode="json")
    metrics: Mapping[str, float | None] = trial.metrics if trial else {}
    gains = _gains(metrics)
    return {
        **{key: document[key] for key in ("id", "name", "state", "reason", "plan", "progress", "best", "spec")},
        "metrics": {key: metrics[key] for key in _SHOWN if metrics.get(key) is not None},
        "knn_gain_over_raw_pixels": gains.get(metric_names.RAW_PIXEL_KNN_ACCURACY),
        "knn_gain_over_random_encoder": gains.get(metric_names.RANDOM_ENCODER_KNN_ACCURACY),
        "paired_p": dict(paired_p or {}),
        "verdict": _verdict(metrics, paired_p or {}),
    }


def _gains(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Return by how much kNN accuracy is above that of each baseline that was measured."""
    learned = metrics.get(metric_names.KNN_ACCURACY)
    measured = {baseline: value for baseline in _BASELINES if (value := metrics.get(baseline)) is not None}
    return {} if learned is None else {baseline: learned - value for baseline, value in measured.items()}


def _verdict(metrics: Mapping[str, float | None], paired_p: Mapping[str, float]) -> str:
    if metrics.get(metric_names.H_COLLAPSED) == 1:
        return (
            "h has collapsed: it hardly varies from image to image, or along one direction only. "
            "Lower optim.base_lr, lengthen optim.warmup_epochs, or strengthen the views."
        )
    gains = _gains(metrics)
    if len(gains) < len(_BASELINES):
        return "Not measured against its baselines yet."
    numbers = " and ".join(
        f"{gain:+.3f} against {_BASELINES[baseline]}"
        + (f" (paired p = {paired_p[baseline]:.2g})" if baseline in paired_p else "")
        for baseline, gain in gains.items()
    )
    behind = [_BASELINES[baseline] for baseline, gain in gains.items() if gain <= 0]
    if behind:
        return f"The encoder does not beat {_both(behind)}: kNN accuracy {numbers}. Train longer or on more negatives."
    unsure = [_BASELINES[baseline] for baseline in gains if paired_p.get(baseline, 0.0) >= _SURE]
    if unsure:
        return (
            f"Whether the encoder beats {_both(unsure)} can't be told from so few images: kNN accuracy {numbers}. "
            "Train longer or on more negatives."
        )
    return f"The encoder knows more than {_both(list(_BASELINES.values()))} do: kNN accuracy {numbers}."


def _both(names: Sequence[str]) -> str:
    return " and ".join(names)


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
