"""Experiments side by side: what they reached, and where their specs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.schemas import Comparison, ExperimentView

__all__ = ["compare", "flatten"]

_SHOWN = ("id", "name", "kind", "state", "best", "progress", "plan", "started_at", "finished_at")


def compare(views: Sequence[ExperimentView], metrics: Mapping[str, Mapping[str, float | None]]) -> Comparison:
    """Return the experiments in the order asked, with their best trials' metrics, and where their specs differ."""
    flat = {view.id: flatten(view.spec) for view in views}
    paths = sorted({path for spec in flat.values() for path in spec})
    differences = {path: {id_: spec.get(path) for id_, spec in flat.items()} for path in paths}
    items = [
        {**view.model_dump(mode="json", include=set(_SHOWN)), "metrics": dict(metrics.get(view.id, {}))}
        for view in views
    ]
    return Comparison(
        items=items,
        differences={path: values for path, values in differences.items() if not _are_equal(list(values.values()))},
    )


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted path -> value; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _are_equal(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)
