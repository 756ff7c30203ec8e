"""The catalogue of studies: each the question of one figure or table of the paper, as data.

A study is one file in `presets/`. Adding a study is adding a file; nothing else names one.
Sources: Chen et al. 2020 (arXiv 2002.05709).
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import Field

from trainer.spec import Part
from tune_spaces.space import Space

__all__ = ["Claim", "Figure", "PaperTable", "Size", "Study", "StudySize", "Term", "get_study", "list_studies"]

Size = Literal["smoke", "small", "paper"]
SIZES: tuple[Size, ...] = ("smoke", "small", "paper")

_Tuple = Field(strict=False)


class Term(Part):
    """One side of a comparison: the mean of a metric over the trials that match, times a weight."""

    weight: float
    # Dotted path -> value or values; "first" and "last" are of the values its space has, by size.
    where: dict[str, Any] = Field({})
    metric: str | None = None  # None: the sweep's


class Claim(Part):
    """One statement of the paper as a contrast: it holds where the weighted sum is above 0."""

    text: str
    terms: Annotated[tuple[Term, ...], _Tuple]


class PaperTable(Part):
    """Numbers as the paper prints them (accuracies as ratios), a row for each setting."""

    columns: Annotated[tuple[str, ...], _Tuple]  # dotted paths, then metric names
    rows: Annotated[tuple[Annotated[tuple[Any, ...], _Tuple], ...], _Tuple]
    note: str = ""


class Figure(Part):
    """The form in which the paper shows the answer."""

    kind: Literal["bars", "heatmap", "lines", "table"]
    x: Annotated[tuple[str, ...], _Tuple]  # dotted paths along the horizontal axis, or of a table's rows
    series: Annotated[tuple[str, ...], _Tuple] = ()  # of bars' and lines' groups; of a heat-map's rows
    metrics: Annotated[tuple[str, ...], _Tuple] = ()  # a table's columns; () is the sweep's metric


class Paper(Part):
    """What the paper found."""

    finding: str
    claims: Annotated[tuple[Claim, ...], _Tuple]
    numbers: PaperTable | None  # None: known only as a picture
    settings: dict[str, Any]  # dotted path -> what the paper fixed


class StudySize(Part):
    """One size of a study: what it fixes and what it varies."""

    base: dict[str, Any]
    space: Space
    seeds: Annotated[tuple[int, ...], _Tuple] = (0,)
    max_trials: int = Field(32, ge=1)
    cost: str  # on what machine, about how long


class Study(Part):
    """A named sweep that answers one question of the paper."""

    name: str
    description: str
    question: str
    source: str
    base: dict[str, Any]  # held fixed in every size
    metric: str
    mode: Literal["max", "min"] = "max"
    figure: Figure
    needs_labels: bool
    analysis: Literal["colour_histograms"] | None = None  # computed from views, beside the trials
    paper: Paper
    sizes: dict[Size, StudySize]


def list_studies() -> list[Study]:
    """Return every study, by name."""
    return list(_studies().values())


def get_study(name: str) -> Study | None:
    """Return the study of this name, None if there is none."""
    return _studies().get(name)


@cache
def _studies() -> dict[str, Study]:
    folder = files("tune_spaces.studies") / "presets"
    documents = (
        json.loads(file.read_text(encoding="utf-8")) for file in folder.iterdir() if file.name.endswith(".json")
    )
    return {study.name: study for study in sorted(map(Study.model_validate, documents), key=lambda study: study.name)}
