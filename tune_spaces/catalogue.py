"""The catalogue of studies as clients read it: what each asks, and what it varies and costs at each size."""

from __future__ import annotations

from typing import Any

from tune_spaces.plan import plan_sweep
from tune_spaces.spec import SweepSpec
from tune_spaces.studies import Size, Study, StudySize

__all__ = ["describe_study"]


def describe_study(study: Study) -> dict[str, Any]:
    """Return the study as `GET /studies` shows it."""
    return study.model_dump(mode="json", exclude={"sizes"}) | {
        "sizes": {name: _describe_size(study.name, name, size) for name, size in study.sizes.items()},
        "axes": list(study.sizes["small"].space),
    }


def _describe_size(study: str, name: Size, size: StudySize) -> dict[str, Any]:
    sweep = SweepSpec(study=study, size=name, base={"data": {"dataset": "any"}})
    return {
        "trials": plan_sweep(sweep, lambda _: 1).num_trials,
        "seeds": len(size.seeds),
        "axes": size.model_dump(mode="json", exclude_defaults=True)["space"],
        "fixed": size.base,
        "cost": size.cost,
    }
