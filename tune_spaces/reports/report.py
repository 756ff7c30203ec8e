"""The report of a sweep as data: settings with intervals, comparisons, the figure and the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from trainer import metric_names
from trainer.trial_table import TrialRow
from tune_spaces.overrides import flat_value, value_at
from tune_spaces.reports.estimate import Estimate, estimate
from tune_spaces.reports.observations import Observation, Observations, mean_by_seed, over_seeds
from tune_spaces.reports.verdict import RULE, ClaimResult, Verdict, judge_claim, overall, sentence
from tune_spaces.space import Choice
from tune_spaces.spec import SweepSpec
from tune_spaces.studies import Figure, PaperTable, Study, get_study

__all__ = ["Comparison", "Difference", "FigureData", "Report", "Series", "Setting", "build_report"]

MAX_COMPARED: Final = 20  # settings that are compared with the best one
MAX_DRAWN: Final = 30  # settings in a figure that has no axes
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


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting that is not the paper's."""

    path: str
    here: Any
    paper: Any


@dataclass(frozen=True, kw_only=True)
class Series:
    """The values of one group along the horizontal axis."""

    name: str
    values: tuple[Estimate | None, ...]
    paper: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """What a figure shows, before it is drawn."""

    kind: Literal["bars", "heatmap", "lines", "table"]
    x_label: str
    y_label: str
    series_label: str
    x: tuple[str, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The answer of a sweep."""

    name: str
    study: str | None
    question: str | None
    source: str | None
    metric: str
    mode: Literal["max", "min"]
    sentence: str
    verdict: Verdict | None  # None: no claim of the paper was asked about
    rule: str | None
    claims: tuple[ClaimResult, ...]
    paper_finding: str | None
    paper_note: str | None
    num_seeds: int
    num_trials: Mapping[str, int]  # by state
    best: str | None  # label of the best setting
    metrics: tuple[str, ...]  # the columns of the table of settings
    settings: tuple[Setting, ...]  # best first
    comparisons: tuple[Comparison, ...]
    differences: tuple[Difference, ...]
    failures: Mapping[str, str]  # trial -> why
    figure: FigureData
    analysis: Mapping[str, Any] | None


def build_report(
    sweep: SweepSpec, rows: Sequence[TrialRow], *, name: str, analysis: Mapping[str, Any] | None = None
) -> Report:
    """Return the report of a complete sweep from its trial table.

    Args:
        sweep: Complete.
        rows: The trial table; only trials that ran to their ends are compared.
        name: What the user called the experiment.
        analysis: What was computed beside the trials, where the study asks for it.
    """
    study = get_study(sweep.study) if sweep.study else None
    observations = Observations(sweep, rows)
    metrics = _columns(sweep, study, observations)
    settings = _settings(observations, sweep, study, metrics)
    claims = _claims(observations, sweep, study)
    num_seeds = len(observations.seeds)
    return Report(
        name=name,
        study=sweep.study,
        question=study.question if study else None,
        source=study.source if study else None,
        metric=sweep.metric,
        mode=sweep.mode,
        sentence=sentence(claims, num_seeds=num_seeds) if claims else _plain_sentence(settings, sweep, observations),
        verdict=overall(claims) if claims else None,
        rule=RULE if claims else None,
        claims=claims,
        paper_finding=study.paper.finding if study else None,
        paper_note=_paper_note(study),
        num_seeds=num_seeds,
        num_trials=dict(Counter(row.state for row in rows)),
        best=settings[0].label if settings else None,
        metrics=metrics,
        settings=settings,
        comparisons=_comparisons(settings, observations, sweep),
        differences=_differences(sweep, study),
        failures={row.id: str((row.reason or {}).get("message", "")) for row in rows if row.state == "failed"},
        figure=_figure(observations, sweep, study, settings),
        analysis=analysis,
    )


# --- settings -------------------------------------------------------------------------------------


def _columns(sweep: SweepSpec, study: Study | None, observations: Observations) -> tuple[str, ...]:
    asked = [sweep.metric]
    if study:
        asked += study.figure.metrics
        asked += [term.metric for claim in study.paper.claims for term in claim.terms if term.metric]
    logged = {metric for one in observations.all for metric in one.metrics}
    return tuple(metric for metric in dict.fromkeys([*asked, *BASELINES]) if metric in logged or metric == sweep.metric)


def _settings(
    observations: Observations, sweep: SweepSpec, study: Study | None, metrics: Sequence[str]
) -> tuple[Setting, ...]:
    numbers = study.paper.numbers if study else None
    found = [
        Setting(
            label=label,
            params=group[0].params,
            trials=tuple(one.id for one in group),
            metrics={metric: over_seeds(group, metric) for metric in metrics},
            paper=_paper_values(observations, group[0], numbers),
        )
        for label, group in observations.by_setting.items()
    ]
    return tuple(sorted(found, key=lambda setting: _rank(setting.metrics[sweep.metric], sweep)))


def _rank(value: Estimate | None, sweep: SweepSpec) -> float:
    if value is None:
        return float("inf")
    return -value.mean if sweep.mode == "max" else value.mean


def _paper_values(observations: Observations, one: Observation, numbers: PaperTable | None) -> dict[str, float]:
    """Return the paper's numbers for the setting of an observation."""
    if numbers is None:
        return {}
    is_metric = [column in metric_names.ALL_METRICS for column in numbers.columns]
    for row in numbers.rows:
        cells = list(zip(numbers.columns, row, is_metric, strict=True))
        if all(observations.value(one, column) == cell for column, cell, is_value in cells if not is_value):
            return {column: cell for column, cell, is_value in cells if is_value}
    return {}


def _comparisons(settings: Sequence[Setting], observations: Observations, sweep: SweepSpec) -> tuple[Comparison, ...]:
    if len(settings) < 2:  # noqa: PLR2004 - two sides
        return ()
    sign = 1 if sweep.mode == "max" else -1
    best = mean_by_seed(observations.by_setting[settings[0].label], sweep.metric)
    found = []
    for setting in settings[1 : MAX_COMPARED + 1]:
        other = mean_by_seed(observations.by_setting[setting.label], sweep.metric)
        difference = estimate([sign * (best[seed] - other[seed]) for seed in best if seed in other])
        is_told = difference is not None and difference.low is not None and difference.low > 0
        found.append(Comparison(label=setting.label, difference=difference, is_told_apart=is_told))
    return tuple(found)


# --- the paper ------------------------------------------------------------------------------------


def _claims(observations: Observations, sweep: SweepSpec, study: Study | None) -> tuple[ClaimResult, ...]:
    claims = study.paper.claims if study else ()
    return tuple(judge_claim(claim, observations, metric=sweep.metric, mode=sweep.mode) for claim in claims)


def _plain_sentence(settings: Sequence[Setting], sweep: SweepSpec, observations: Observations) -> str:
    best = settings[0].metrics[sweep.metric] if settings else None
    if best is None:
        return "No trial ran to its end, so there is nothing to compare."
    told = [one.is_told_apart for one in _comparisons(settings, observations, sweep)]
    lead = "the only setting" if not told else f"told apart from {sum(told)} of {len(told)} others"
    return (
        f"Best by {sweep.metric} is {settings[0].label} with {best.mean:.4g}, {lead}; no claim of the paper is judged."
    )


def _paper_note(study: Study | None) -> str | None:
    if study is None:
        return None
    if study.paper.numbers is None:
        return "The paper shows its numbers only as a picture, so none stand beside ours."
    return f"The paper's numbers: {study.paper.numbers.note}."


def _differences(sweep: SweepSpec, study: Study | None) -> tuple[Difference, ...]:
    if study is None:
        return ()
    axes = sweep.axes()
    here = {path: flat_value(value_at(sweep.base, path)) for path in study.paper.settings if path not in axes}
    return tuple(
        Difference(path=path, here=value, paper=study.paper.settings[path])
        for path, value in here.items()
        if value != study.paper.settings[path]
    )


# --- the figure -----------------------------------------------------------------------------------


def _figure(
    observations: Observations, sweep: SweepSpec, study: Study | None, settings: Sequence[Setting]
) -> FigureData:
    form = study.figure if study else _own_form(sweep)
    if form.kind == "table":
        drawn = settings[:MAX_DRAWN]
        series = Series(
            name=sweep.metric,
            values=tuple(setting.metrics[sweep.metric] for setting in drawn),
            paper=tuple(setting.paper.get(sweep.metric) for setting in drawn),
        )
        labels = tuple(setting.label for setting in drawn)
        return FigureData(kind="table", x_label=sweep.metric, y_label="", series_label="", x=labels, series=(series,))
    columns, groups = observations.values(form.x), observations.values(form.series)
    numbers = study.paper.numbers if study else None
    cells: dict[tuple[Any, Any], list[Observation]] = {}
    for one in observations.all:
        place = tuple(tuple(observations.value(one, path) for path in paths) for paths in (form.series, form.x))
        cells.setdefault((place[0], place[1]), []).append(one)
    return FigureData(
        kind=form.kind,
        x_label=", ".join(form.x),
        y_label=sweep.metric,
        series_label=", ".join(form.series),
        x=tuple(_told(column) for column in columns),
        series=tuple(
            Series(
                name=_told(group),
                values=tuple(over_seeds(cells.get((group, column), ()), sweep.metric) for column in columns),
                paper=tuple(
                    _paper_values(observations, found[0], numbers).get(sweep.metric)
                    if (found := cells.get((group, column)))
                    else None
                    for column in columns
                ),
            )
            for group in groups
        ),
    )


def _own_form(sweep: SweepSpec) -> Figure:
    """Return the form that suits a space of the user's own."""
    axes = sweep.axes()
    is_listed = all(isinstance(domain, Choice) for domain in axes.values())
    if not is_listed or len(axes) not in (1, 2):
        return Figure(kind="table", x=())
    first, *rest = axes
    return Figure(kind="heatmap", x=tuple(rest), series=(first,)) if rest else Figure(kind="bars", x=(first,))


def _told(values: tuple[Any, ...]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
