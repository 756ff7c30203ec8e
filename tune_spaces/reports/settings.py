"""The settings of a sweep over their seeds: means with intervals, the paper's numbers, paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainer import metric_names
from tune_spaces.reports.estimate import Estimate, estimate
from tune_spaces.reports.labels import setting_labels
from tune_spaces.reports.observations import Observation, Observations, mean_by_seed, over_seeds, setting_key
from tune_spaces.spec import SweepSpec
from tune_spaces.studies import PaperTable, Study

__all__ = ["Comparison", "Setting", "columns_of", "compare", "list_settings", "paper_values"]

MAX_COMPARED: Final = 20  # settings that are compared with the best one
BASELINES: Final = (metric_names.RAW_PIXEL_KNN_ACCURACY, metric_names.RANDOM_ENCODER_KNN_ACCURACY)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting over its seeds."""

    label: str
    params: Mapping[str, Any]
    trials: tuple[str, ...]
    metrics: Mapping[str, Estimate | None]
    paper: Mapping[str, float]  # metric -> the paper's number for this setting; {} where it has none


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The best setting against another, paired by seed; above 0 the best is better."""

    label: str
    difference: Estimate | None
    is_told_apart: bool


def columns_of(sweep: SweepSpec, study: Study | None, observations: Observations) -> tuple[str, ...]:
    """Return the metrics that the table of settings shows."""
    asked = [sweep.metric]
    if study:
        asked += study.figure.metrics
        asked += [term.metric for claim in study.paper.claims for term in claim.terms if term.metric]
    logged = {metric for one in observations.all for metric in one.metrics}
    return tuple(metric for metric in dict.fromkeys([*asked, *BASELINES]) if metric in logged or metric == sweep.metric)


def list_settings(
    observations: Observations, sweep: SweepSpec, study: Study | None, metrics: Sequence[str]
) -> tuple[Setting, ...]:
    """Return every setting that was seen, the best first."""
    numbers = study.paper.numbers if study else None
    groups = list(observations.by_setting.values())
    labels = setting_labels([group[0].params for group in groups])
    found = [
        Setting(
            label=label,
            params=group[0].params,
            trials=tuple(one.id for one in group),
            metrics={metric: over_seeds(group, metric) for metric in metrics},
            paper=paper_values(observations, group[0], numbers),
        )
        for label, group in zip(labels, groups, strict=True)
    ]
    return tuple(sorted(found, key=lambda setting: _rank(setting.metrics[sweep.metric], sweep)))


def _rank(value: Estimate | None, sweep: SweepSpec) -> float:
    if value is None:
        return float("inf")
    return -value.mean if sweep.mode == "max" else value.mean


def paper_values(observations: Observations, one: Observation, numbers: PaperTable | None) -> dict[str, float]:
    """Return the paper's numbers for the setting of an observation."""
    if numbers is None:
        return {}
    is_metric = [column in metric_names.ALL_METRICS for column in numbers.columns]
    for row in numbers.rows:
        cells = list(zip(numbers.columns, row, is_metric, strict=True))
        if all(observations.value(one, column) == cell for column, cell, is_value in cells if not is_value):
            return {column: cell for column, cell, is_value in cells if is_value}
    return {}


def compare(settings: Sequence[Setting], observations: Observations, sweep: SweepSpec) -> tuple[Comparison, ...]:
    """Return the first setting against each of those behind it, paired by seed."""
    if len(settings) < 2:  # noqa: PLR2004 - two sides
        return ()
    sign = 1 if sweep.mode == "max" else -1
    best = mean_by_seed(observations.by_setting[setting_key(settings[0].params)], sweep.metric)
    found = []
    for setting in settings[1 : MAX_COMPARED + 1]:
        other = mean_by_seed(observations.by_setting[setting_key(setting.params)], sweep.metric)
        difference = estimate([sign * (best[seed] - other[seed]) for seed in best if seed in other])
        is_told = difference is not None and difference.low is not None and difference.low > 0
        found.append(Comparison(label=setting.label, difference=difference, is_told_apart=is_told))
    return tuple(found)
