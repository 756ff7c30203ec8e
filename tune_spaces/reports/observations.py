"""The trials of a sweep as observations: what was set, under which seed, and what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from trainer.spec import PretrainSpec
from trainer.trial_table import TrialRow
from tune_spaces.overrides import apply_overrides, flat_value, listed_values, point_of, value_at
from tune_spaces.plan import SEED
from tune_spaces.reports.estimate import Estimate, estimate
from tune_spaces.reports.operations import OPERATIONS, first_view_operations
from tune_spaces.spec import SweepSpec

__all__ = ["Observation", "Observations", "mean_by_seed", "over_seeds", "setting_key"]

_HEAD: Final = "projection_head.kind"
_DIM: Final = "projection_head.dim"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One trial and, once it ran to its end, what came of it."""

    id: str
    seed: int
    params: Mapping[str, Any]  # flat, without the seed
    metrics: Mapping[str, float]


class Observations:
    """The observations of a complete sweep, found by setting and seed."""

    def __init__(self, sweep: SweepSpec, rows: Iterable[TrialRow]) -> None:
        self._base = sweep.base
        table = [(row.state, _observation(row, sweep)) for row in rows]
        self.planned = [observation for _, observation in table]
        self.all = [observation for state, observation in table if state == "succeeded"]

    @cached_property
    def seeds(self) -> list[int]:
        """Return every seed, in order."""
        return sorted({observation.seed for observation in self.all})

    @cached_property
    def num_seeds_planned(self) -> dict[str, int]:
        """Return under how many seeds each setting is to run, by its key; searches may draw seeds unequally."""
        seeds: dict[str, set[int]] = {}
        for one in self.planned:
            seeds.setdefault(setting_key(one.params), set()).add(one.seed)
        return {setting: len(found) for setting, found in seeds.items()}

    @cached_property
    def by_setting(self) -> dict[str, list[Observation]]:
        """Return the observations of each setting, one a seed, by its key."""
        groups: dict[str, list[Observation]] = {}
        for observation in self.all:
            groups.setdefault(setting_key(observation.params), []).append(observation)
        return groups

    def value(self, observation: Observation, path: str) -> Any:
        """Return what a trial had at a path, from its params or else the base.

        `views.operations#N` is the name of the N-th of those operations that only one view gets (of
        one alone, both). Without a projection head z is h, so its dimension is not the spec's.
        """
        if path == _DIM and self._field(observation.params, _HEAD) == "none":
            return "width of h"
        name, _, place = path.partition("#")
        value = self._field(observation.params, name)
        if name != OPERATIONS or value is None or not place:
            return value
        names = first_view_operations(value)
        return names[min(int(place), len(names)) - 1] if names else None

    def _field(self, params: Mapping[str, Any], path: str) -> Any:
        if path in params:
            return params[path]
        if not any(path.startswith(f"{part}.") for part in params):
            return flat_value(value_at(self._base, path))
        # An axis replaced the whole part that the field is of, and the spec fills in the rest of it.
        spec = PretrainSpec.model_validate(apply_overrides(self._base, point_of(params)))
        return flat_value(value_at(spec.model_dump(mode="json"), path))

    def values_of(self, observation: Observation, paths: Sequence[str]) -> tuple[Any, ...]:
        """Return what a trial had at some paths together."""
        return tuple(self.value(observation, path) for path in paths)

    def values(self, paths: Sequence[str], *, of: Sequence[Observation] | None = None) -> list[tuple[Any, ...]]:
        """Return what trials had at some paths together: numbers by size, listed values in the field's order.

        `of` are the trials that are asked; None: all that ran to their ends. Other values are in
        order of trials.
        """
        found = dict.fromkeys(self.values_of(one, paths) for one in (self.all if of is None else of))
        places = [_places(path, (item[index] for item in found)) for index, path in enumerate(paths)]
        return sorted(found, key=lambda item: [place[value] for place, value in zip(places, item, strict=True)])

    def planned_settings(self, where: Mapping[str, Any]) -> list[str]:
        """Return the keys of the settings with these values, whether they ran to their ends or not.

        `first` and `last` are of the values that a path has in the whole sweep.
        """
        wanted = {path: self._wanted(path, value) for path, value in where.items()}
        found = (one for one in self.planned if all(self.value(one, path) in values for path, values in wanted.items()))
        return list(dict.fromkeys(setting_key(one.params) for one in found))

    def _wanted(self, path: str, value: Any) -> Sequence[Any]:
        if value in ("first", "last"):
            found = [item[0] for item in self.values([path], of=self.planned)]
            return [] if not found else [found[0] if value == "first" else found[-1]]
        return value if isinstance(value, list) else [value]


def setting_key(params: Mapping[str, Any]) -> str:
    """Return what tells a setting from all others, however alike they read."""
    return json.dumps(params, sort_keys=True)


def mean_by_seed(observations: Iterable[Observation], metric: str) -> dict[int, float]:
    """Return seed -> mean of a metric over the observations under it."""
    by_seed: dict[int, list[float]] = {}
    for one in observations:
        if metric in one.metrics:
            by_seed.setdefault(one.seed, []).append(one.metrics[metric])
    return {seed: sum(values) / len(values) for seed, values in sorted(by_seed.items())}


def over_seeds(observations: Iterable[Observation], metric: str) -> Estimate | None:
    """Return the estimate of a metric over seeds."""
    return estimate(list(mean_by_seed(observations, metric).values()))


def _places(path: str, values: Iterable[Any]) -> dict[Any, int]:
    """Return the place of each of some values at a path; of those without an order the first seen comes first."""
    listed = listed_values(path)

    def rank(value: Any) -> tuple[bool, float]:
        if value in listed:
            return False, listed.index(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return not is_number, value if is_number else 0

    return {value: place for place, value in enumerate(sorted(dict.fromkeys(values), key=rank))}


def _observation(row: TrialRow, sweep: SweepSpec) -> Observation:
    return Observation(
        id=row.id,
        seed=row.params.get(SEED, sweep.seeds[0]),
        params={path: value for path, value in row.params.items() if path != SEED},
        metrics={name: value for name, value in row.metrics.items() if _is_finite(value)},
    )


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
