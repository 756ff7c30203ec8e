"""What the figure of a report shows, before it is drawn: a study's form, or one that suits the space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tune_spaces.reports.estimate import Estimate
from tune_spaces.reports.observations import Observation, Observations, over_seeds
from tune_spaces.reports.settings import Setting, paper_values
from tune_spaces.space import Choice
from tune_spaces.spec import SweepSpec
from tune_spaces.studies import Figure, Study

__all__ = ["FigureData", "Series", "figure_data"]

MAX_DRAWN: Final = 30  # settings in a figure that has no axes


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
        settings: Best first; drawn as they are where the space has no form.
    """
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
                    paper_values(observations, found[0], numbers).get(sweep.metric)
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
