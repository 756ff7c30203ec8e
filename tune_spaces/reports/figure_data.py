"""What the figure of a report shows, before it is drawn: a study's form, or one that suits the space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tune_spaces.plan import SEED
from tune_spaces.reports.estimate import Estimate
from tune_spaces.reports.labels import value_labels
from tune_spaces.reports.observations import Observation, Observations, over_seeds
from tune_spaces.reports.settings import Setting, paper_values
from tune_spaces.space import Choice
from tune_spaces.spec import SweepSpec
from tune_spaces.studies import Figure, Study

__all__ = ["FigureData", "Series", "figure_data"]

MAX_DRAWN: Final = 30  # settings in a figure that has no axes
MAX_GROUPS: Final = {"bars": 10, "lines": 10, "heatmap": 30}  # colours to tell apart, and names that fit beside rows


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


def figure_data(
    observations: Observations, sweep: SweepSpec, study: Study | None, settings: Sequence[Setting]
) -> FigureData:
    """Return the figure of a complete sweep.

    Args:
        observations: Of the trials that ran to their ends.
        sweep: Complete.
        study: Whose form it has; None: one that suits the space.
        settings: Best first; drawn as they are where the space has no form, or more groups than it has room for.
    """
    form = study.figure if study else _own_form(sweep)
    if form.kind == "table":
        return _table(sweep, settings)
    paths = _paths_of_groups(observations, sweep, form)
    groups = observations.values(paths)
    if len(groups) > MAX_GROUPS[form.kind]:
        return _table(sweep, settings)
    columns = observations.values(form.x)
    numbers = study.paper.numbers if study else None
    cells: dict[tuple[Any, Any], list[Observation]] = {}
    for one in observations.all:
        cells.setdefault((observations.values_of(one, paths), observations.values_of(one, form.x)), []).append(one)
    return FigureData(
        kind=form.kind,
        x_label=", ".join(form.x),
        y_label=sweep.metric,
        series_label=", ".join(paths),
        x=tuple(value_labels(form.x, columns)),
        series=tuple(
            Series(
                name=name,
                values=tuple(over_seeds(cells.get((group, column), ()), sweep.metric) for column in columns),
                paper=tuple(
                    paper_values(observations, found[0], numbers).get(sweep.metric)
                    if (found := cells.get((group, column)))
                    else None
                    for column in columns
                ),
            )
            for name, group in zip(value_labels(paths, groups), groups, strict=True)
        ),
    )


def _table(sweep: SweepSpec, settings: Sequence[Setting]) -> FigureData:
    """Return the best settings, one a row."""
    drawn = settings[:MAX_DRAWN]
    series = Series(
        name=sweep.metric,
        values=tuple(setting.metrics[sweep.metric] for setting in drawn),
        paper=tuple(setting.paper.get(sweep.metric) for setting in drawn),
    )
    labels = tuple(setting.label for setting in drawn)
    return FigureData(kind="table", x_label=sweep.metric, y_label="", series_label="", x=labels, series=(series,))


def _paths_of_groups(observations: Observations, sweep: SweepSpec, form: Figure) -> tuple[str, ...]:
    """Return the paths of the form's groups and as many axes more as it takes that no cell mixes settings."""
    settings = [group[0] for group in observations.by_setting.values()]
    paths = form.series
    for axis in sweep.axes():
        cells: dict[tuple[Any, ...], set[Any]] = {}
        for one in settings:
            cell = observations.values_of(one, (*paths, *form.x))
            cells.setdefault(cell, set()).add(observations.value(one, axis))
        if any(len(values) > 1 for values in cells.values()):
            paths = (*paths, axis)
    return paths


def _own_form(sweep: SweepSpec) -> Figure:
    """Return the form that suits a space of the user's own; seeds are what every value is a mean over."""
    axes = {path: domain for path, domain in sweep.axes().items() if path != SEED}
    is_listed = all(isinstance(domain, Choice) for domain in axes.values())
    if not is_listed or len(axes) not in (1, 2):
        return Figure(kind="table", x=())
    first, *rest = axes
    return Figure(kind="heatmap", x=tuple(rest), series=(first,)) if rest else Figure(kind="bars", x=(first,))
