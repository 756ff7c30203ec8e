"""More trials for a sweep that has run: the request of its continuation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tune_spaces.overrides import merge
from tune_spaces.plan import SEED
from tune_spaces.spec import SweepSpec, complete

__all__ = ["continued_request"]


def continued_request(request: Mapping[str, Any], *, max_trials: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the request of the same sweep with `max_trials` trials in all; the first are as they were.

    Args:
        request: The sweep spec as it was asked.
        max_trials: A number of trials in all, of whole points under every seed.
        seeds: Those that the sweep ran with, of its resolved spec: an earlier version may have filled in others.

    Raises:
        ValueError: If the search is a grid, which has all its points already.
    """
    sweep = complete(SweepSpec.model_validate(request))
    if sweep.search == "grid":
        raise ValueError("a grid has all its points; clone the sweep with more values, or search random")
    more: dict[str, Any] = {"limits": {"max_trials": max_trials}}
    num_seeds = len(sweep.seeds)
    if tuple(seeds) != sweep.seeds and SEED not in sweep.axes():  # an axis of seeds bears no others beside it
        more["seeds"], num_seeds = list(seeds), len(seeds)
    more["num_samples"] = max(1, max_trials // num_seeds)
    return merge(request, more)
