"""The report of a sweep as data: settings with intervals, comparisons, the figure and the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.trial_table import TrialRow
from tune_spaces.overrides import flat_value, value_at
from tune_spaces.reports.figure_data import FigureData, figure_data
from tune_spaces.reports.observations import Observations
from tune_spaces.reports.settings import (
    Comparison,
    Setting,
    columns_of,
    compare,
    comparison_confidence,
    comparison_rule,
    list_settings,
)
from tune_spaces.reports.verdict import RULE, ClaimResult, Verdict, judge_claim, overall, sentence
from tune_spaces.spec import SweepSpec
from tune_spaces.studies import Study, get_study

__all__ = ["Difference", "Report", "build_report"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting that is not the paper's."""

    path: str
    here: Any
    paper: Any


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
    num_seeds_planned: int  # of the setting that has the most; `settings` has the number of each
    num_trials: Mapping[str, int]  # by state
    limit: str | None  # that ended the sweep before all trials had run, in words
    best: str | None  # label of the best setting
    metrics: tuple[str, ...]  # the columns of the table of settings
    settings: tuple[Setting, ...]  # best first
    comparisons: tuple[Comparison, ...]
    comparison_confidence: float  # of each interval, so that all pairs together have 95 %
    comparison_rule: str
    differences: tuple[Difference, ...]
    failures: Mapping[str, str]  # trial -> why
    figure: FigureData
    analysis: Mapping[str, Any] | None


def build_report(
    sweep: SweepSpec,
    rows: Sequence[TrialRow],
    *,
    name: str,
    limit: str | None = None,
    analysis: Mapping[str, Any] | None = None,
) -> Report:
    """Return the report of a complete sweep from its trial table.

    Args:
        sweep: Complete.
        rows: The trial table; only trials that ran to their ends are compared.
        name: What the user called the experiment.
        limit: What ended the sweep before all trials had run, in words; None: they have.
        analysis: What was computed beside the trials, where the study asks for it.
    """
    study = get_study(sweep.study) if sweep.study else None
    observations = Observations(sweep, rows)
    metrics = columns_of(sweep, study, observations)
    settings = list_settings(observations, sweep, study, metrics)
    comparisons = compare(settings, observations, sweep)
    claims = _claims(observations, sweep, study)
    return Report(
        name=name,
        study=sweep.study,
        question=study.question if study else None,
        source=study.source if study else None,
        metric=sweep.metric,
        mode=sweep.mode,
        sentence=sentence(claims) if claims else _plain_sentence(settings, comparisons, sweep),
        verdict=overall(claims) if claims else None,
        rule=RULE if claims else None,
        claims=claims,
        paper_finding=study.paper.finding if study else None,
        paper_note=_paper_note(study),
        num_seeds=len(observations.seeds),
        num_seeds_planned=max(observations.num_seeds_planned.values(), default=0),
        num_trials=dict(Counter(row.state for row in rows)),
        limit=limit,
        best=settings[0].label if settings else None,
        metrics=metrics,
        settings=settings,
        comparisons=comparisons,
        comparison_confidence=comparison_confidence(len(settings)),
        comparison_rule=comparison_rule(len(settings)),
        differences=_differences(sweep, study),
        failures={row.id: str((row.reason or {}).get("message", "")) for row in rows if row.state == "failed"},
        figure=figure_data(observations, sweep, study, settings),
        analysis=analysis,
    )


# --- the paper ------------------------------------------------------------------------------------


def _claims(observations: Observations, sweep: SweepSpec, study: Study | None) -> tuple[ClaimResult, ...]:
    if study is None:
        return ()
    # A claim is about what the paper measured, whichever way the sweep looks for its best trial.
    return tuple(judge_claim(claim, observations, metric=sweep.metric, mode=study.mode) for claim in study.paper.claims)


def _plain_sentence(settings: Sequence[Setting], comparisons: Sequence[Comparison], sweep: SweepSpec) -> str:
    best = settings[0].metrics[sweep.metric] if settings else None
    if best is None:
        return "No trial ran to its end, so there is nothing to compare."
    told = [one.is_told_apart for one in comparisons]
    lead = "the only setting" if not told else f"told apart from {sum(told)} of {len(told)} others"
    return (
        f"Best by {sweep.metric} is {settings[0].label} with {best.mean:.4g}, {lead}"
        f"{_lacking(settings)}; no claim of the paper is judged."
    )


def _lacking(settings: Sequence[Setting]) -> str:
    """Return what is to be said of settings that lack seeds, since trials were stopped early, failed or left out."""
    lacking = sum(setting.lacks_seeds for setting in settings)
    if lacking == len(settings):
        planned = {setting.num_seeds_planned for setting in settings}
        seeds = f"all {planned.pop()} seeds" if len(planned) == 1 else "all of its seeds"
        return f" (no setting has {seeds}, so means are over different ones)"
    if lacking:
        number, verb = ("1 setting", "lacks") if lacking == 1 else (f"{lacking} settings", "lack")
        return f" ({number} that {verb} seeds left behind)"
    return ""


def _paper_note(study: Study | None) -> str | None:
    if study is None:
        return None
    if study.paper.numbers is None:
        return "The paper shows its numbers only as a picture, so none stand beside ours."
    return f"The paper's numbers: {study.paper.numbers.note}."


def _differences(sweep: SweepSpec, study: Study | None) -> tuple[Difference, ...]:
    if study is None:
        return ()
    parts = [path.split(".") for path in sweep.axes()]
    return tuple(
        Difference(path=path, here=here, paper=paper)
        for path, paper in study.paper.settings.items()
        if not any(path.split(".")[: len(part)] == part for part in parts)  # it is what varies, or within it
        and (here := flat_value(value_at(sweep.base, path))) != paper
    )
