"""More trials for a sweep that has run: the request of its continuation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune_spaces.overrides import merge
from tune_spaces.spec import SweepSpec, complete

__all__ = ["continued_request"]


def continued_request(request: Mapping[str, Any], *, max_trials: int) -> dict[str, Any]:
    """Return the request of the same sweep with `max_trials` trials in all; the first are as they were.

    Args:
        request: The sweep spec as it was asked.
        max_trials: A number of trials in all, of whole points under every seed.

    Raises:
        ValueError: If the search is a grid, which has all its points already.
    """
    sweep = complete(SweepSpec.model_validate(request))
    if sweep.search == "grid":
        raise ValueError("a grid has all its points; clone the sweep with more values, or search random")
    more = {"num_samples": max(1, max_trials // len(sweep.seeds)), "limits": {"max_trials": max_trials}}
    return merge(request, more)
