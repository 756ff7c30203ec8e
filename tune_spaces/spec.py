"""The sweep spec: which pretrainings to compare, how to search and when to stop one early.

A sweep names a study, a space, or both: what it says itself replaces what the study has. A
complete sweep spells everything out; completing it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from trainer import metric_names
from trainer.spec import Part, PretrainSpec
from tune_spaces.overrides import merge
from tune_spaces.space import Space
from tune_spaces.studies import Size, get_study

__all__ = ["SweepLimits", "SweepSpec", "complete", "merged_base", "resolve"]

MAX_TRIALS = 10_000
MAX_SEED = 2**63  # excluded

Seed = Annotated[int, Field(ge=0, lt=MAX_SEED)]


class SweepLimits(Part):
    """What a sweep may cost; those of `base` are not looked at."""

    max_trials: int = Field(32, ge=1, le=MAX_TRIALS)  # a wider one is asked for by name
    wall_time_s: int = Field(604_800, ge=1, le=31_536_000)
    max_attempts: int = Field(3, ge=1, le=100)
    max_images: int | None = Field(None, ge=1)


class SweepSpec(Part):
    """Many pretrainings of one base spec, compared at their own ends."""

    base: dict[str, Any] = Field({})  # a fragment of a pretrain spec
    study: str | None = Field(None, max_length=64)
    size: Size = "small"  # of the study
    space: Space | None = None
    search: Literal["grid", "random", "optuna"] = "grid"
    num_samples: int = Field(1, ge=1, le=MAX_TRIALS)  # points of random and optuna
    scheduler: Literal["fifo", "asha", "median"] = "fifo"
    metric: str = Field(metric_names.KNN_ACCURACY, max_length=64)
    mode: Literal["max", "min"] = "max"
    max_concurrent_trials: int | None = Field(None, ge=1, le=MAX_TRIALS)  # None: as many as fit the cluster
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1, max_length=100)] = (0,)
    limits: SweepLimits = SweepLimits()

    def base_spec(self) -> PretrainSpec:
        """Return the base of a complete sweep."""
        return PretrainSpec.model_validate(self.base)

    def axes(self) -> Mapping[str, Any]:
        """Return the space of a complete sweep."""
        return self.space or {}

    def num_trials_searched(self) -> int:
        """Return the number of trials of a random or suggested search."""
        return self.num_samples * len(self.seeds)


def complete(sweep: SweepSpec) -> SweepSpec:
    """Return the sweep with everything spelled out that its study, base or a default gives.

    Derived values of the base (its warm-up, the operations of its preset) stay open, so that each
    trial derives its own.

    Raises:
        pydantic.ValidationError: If the base is no pretrain spec; `sweep_problems` says so first.
    """
    study = get_study(sweep.study) if sweep.study else None
    size = study.sizes[sweep.size] if study else None
    asked = sweep.model_fields_set
    base = merged_base(sweep)
    filled: dict[str, Any] = {"base": PretrainSpec.model_validate(base).model_dump(mode="json")}
    if sweep.space is None:
        filled["space"] = size.space if size else {}
    if "seeds" not in asked:
        # A study's seeds count from that of the base; an axis of seeds is run once at each of its values.
        first, is_axis = base.get("seed", 0), "seed" in (sweep.space or {})
        filled["seeds"] = tuple((first + more) % MAX_SEED for more in (size.seeds if size and not is_axis else (0,)))
    if study and size:
        filled |= {name: getattr(study, name) for name in ("metric", "mode") if name not in asked}
        if "max_trials" not in sweep.limits.model_fields_set:
            filled["limits"] = sweep.limits.model_copy(update={"max_trials": max(size.max_trials, 32)})
    # What was filled in counts as asked from here on: a complete sweep is its own completion.
    whole = sweep.model_copy(update=filled)
    return SweepSpec.model_validate(whole.model_dump(mode="json"))


def merged_base(sweep: SweepSpec) -> dict[str, Any]:
    """Return the base's fragment over that of the study."""
    study = get_study(sweep.study) if sweep.study else None
    base = merge(study.base, study.sizes[sweep.size].base) if study else {}
    # What is judged while it runs has to be measured while it runs, unless the user says otherwise.
    if sweep.scheduler != "fifo" and not base.get("evaluation", {}).get("knn_every_epochs"):
        base = merge(base, {"evaluation": {"knn_every_epochs": 1}})
    return merge(base, sweep.base)


def resolve(sweep: SweepSpec) -> dict[str, Any]:
    """Return the complete sweep as JSON."""
    return complete(sweep).model_dump(mode="json")
