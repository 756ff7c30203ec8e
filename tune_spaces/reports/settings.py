"""The settings of a sweep over their seeds: means with intervals, the paper's numbers, paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainer import metric_names
from tune_spaces.reports.estimate import CONFIDENCE, Estimate, estimate
from tune_spaces.reports.labels import setting_labels
from tune_spaces.reports.observations import Observation, Observations, mean_by_seed, over_seeds, setting_key
from tune_spaces.spec import SweepSpec
from tune_spaces.studies import PaperTable, Study

__all__ = [
    "Comparison",
    "Setting",
    "columns_of",
    "compare",
    "comparison_confidence",
    "comparison_rule",
    "list_settings",
    "paper_values",
]

BASELINES: Final = (metric_names.RAW_PIXEL_KNN_ACCURACY, metric_names.RANDOM_ENCODER_KNN_ACCURACY)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting over its seeds."""

    label: str
    params: Mapping[str, Any]
    trials: tuple[str, ...]
    num_seeds: int  # under which it has the sweep's metric
    num_seeds_planned: int  # under which it was to run
    metrics: Mapping[str, Estimate | None]
    paper: Mapping[str, float]  # metric -> the paper's number for this setting; {} where it has none

    @property
    def lacks_seeds(self) -> bool:
        """Return whether it has no result under some seed of its own, since trials were stopped, failed or left out."""
        return self.num_seeds < self.num_seeds_planned


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The best setting against another, paired by seed; above 0 the best is better.

    Its interval holds together with those of all other pairs of settings (`comparison_rule`).
    """

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
    """Return every setting that was seen, the best first, those that lack seeds of their own behind all others.

    What ends a trial may favour easy seeds, and a mean over those is no sign of a good setting. A
    setting for which a search drew fewer seeds than for others lacks none.
    """
    numbers = study.paper.numbers if study else None
    groups = list(observations.by_setting.values())
    labels = setting_labels([group[0].params for group in groups])
    found = [
        Setting(
            label=label,
            params=group[0].params,
            trials=tuple(one.id for one in group),
            num_seeds=len(mean_by_seed(group, sweep.metric)),
            num_seeds_planned=observations.num_seeds_planned[setting_key(group[0].params)],
            metrics={metric: over_seeds(group, metric) for metric in metrics},
            paper=paper_values(observations, group[0], numbers),
        )
        for label, group in zip(labels, groups, strict=True)
    ]
    return tuple(sorted(found, key=lambda one: (one.lacks_seeds, _rank(one.metrics[sweep.metric], sweep))))


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


def comparison_confidence(num_settings: int) -> float:
    """Return the confidence of each pair of so many settings at which all hold at once in 95 % (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / max(1, math.comb(num_settings, 2))


def comparison_rule(num_settings: int) -> str:
    """Return in words how the best of so many settings is told apart from the others."""
    pairs = math.comb(num_settings, 2)
    rule = "Told apart is what has the whole interval (Student's t) of its difference, paired by seed, above 0."
    if pairs <= 1:
        return f"{rule} It is a 95 % interval."
    return (
        f"{rule} The best was picked by the same numbers, so each interval is taken at 1 - 0.05 / {pairs} for the "
        f"{pairs} pairs of {num_settings} settings (Bonferroni): in 95 % of sweeps all of them hold at once. "
        "More seeds narrow them fast."
    )


def compare(settings: Sequence[Setting], observations: Observations, sweep: SweepSpec) -> tuple[Comparison, ...]:
    """Return the first setting against each of those behind it, paired by seed."""
    if not settings:
        return ()
    sign = 1 if sweep.mode == "max" else -1
    confidence = comparison_confidence(len(settings))
    best = mean_by_seed(observations.by_setting[setting_key(settings[0].params)], sweep.metric)
    found = []
    for setting in settings[1:]:
        other = mean_by_seed(observations.by_setting[setting_key(setting.params)], sweep.metric)
        difference = estimate(
            [sign * (best[seed] - other[seed]) for seed in best if seed in other], confidence=confidence
        )
        is_told = difference is not None and difference.low is not None and difference.low > 0
        found.append(Comparison(label=setting.label, difference=difference, is_told_apart=is_told))
    return tuple(found)
