"""Whether what the paper claims holds here, by a rule that is stated with the answer.

A claim is a contrast: a weighted sum of means that is above 0 if the claim is true. It is taken
under each seed by itself, so that what a seed does to both sides cancels, and its mean over seeds
is judged by the 95 % interval. A seed under which a setting did not end is left out of it: means
over settings that differ from side to side would tell of other axes than the claim does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from trainer import metric_names
from tune_spaces.reports.estimate import ROUNDING, Estimate, estimate
from tune_spaces.reports.observations import Observations, mean_by_seed
from tune_spaces.studies import Claim

__all__ = ["RULE", "ClaimResult", "Verdict", "judge_claim", "overall", "sentence"]

Verdict = Literal["holds", "does_not", "cannot_tell"]

RULE: Final = (
    "A claim holds if the 95 % interval (Student's t) of its difference, paired by seed, lies above 0; it does not if "
    "the interval lies below 0; else it can't be told. A seed counts if every setting that the claim compares ended "
    "under it; one seed, or seeds that all differ by the same, give no interval. The paper's claim holds if all of its "
    "parts do, and does not if one of them does not."
)

ACCURACIES_OF_H: Final = (
    metric_names.KNN_ACCURACY,
    metric_names.KNN_ACCURACY_K200,
    metric_names.LINEAR_ACCURACY,
    metric_names.LINEAR_ACCURACY_1PCT,
    metric_names.LINEAR_ACCURACY_10PCT,
    metric_names.FINE_TUNED_ACCURACY,
    metric_names.FINE_TUNED_ACCURACY_1PCT,
    metric_names.FINE_TUNED_ACCURACY_10PCT,
)


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """One claim and what became of it."""

    text: str
    verdict: Verdict
    difference: Estimate | None  # None: the sweep lacks the settings it is about, or its metric is none of h
    reason: str | None = None  # why it is not judged at all


def judge_claim(claim: Claim, observations: Observations, *, metric: str, mode: Literal["max", "min"]) -> ClaimResult:
    """Return whether a claim holds; the difference is over the seeds under which all its settings ended."""
    if metric not in ACCURACIES_OF_H and any(term.metric is None for term in claim.terms):
        reason = f"{metric} is no accuracy of h, which is what the paper speaks of"
        return ClaimResult(text=claim.text, verdict="cannot_tell", difference=None, reason=reason)
    weights = _weights(claim, observations, metric=metric, mode=mode)
    by_seed = {
        (setting, name): mean_by_seed(observations.by_setting.get(setting, ()), name) for setting, name in weights
    }
    seeds = sorted(set.intersection(*map(set, by_seed.values()))) if by_seed else []
    difference = estimate([sum(weight * by_seed[cell][seed] for cell, weight in weights.items()) for seed in seeds])
    return ClaimResult(text=claim.text, verdict=_verdict(difference), difference=difference)


def _weights(
    claim: Claim, observations: Observations, *, metric: str, mode: Literal["max", "min"]
) -> dict[tuple[str, str], float]:
    """Return the contrast as (setting, metric) -> weight.

    It is {} where the sweep lacks a side, or has the same settings on both and so nothing to contrast.
    """
    weights: dict[tuple[str, str], float] = {}
    for term in claim.terms:
        settings = observations.planned_settings(term.where)
        if not settings:
            return {}
        sign = -1 if mode == "min" and term.metric is None else 1
        for setting in settings:
            cell = (setting, term.metric or metric)
            weights[cell] = weights.get(cell, 0.0) + sign * term.weight / len(settings)
    return {cell: weight for cell, weight in weights.items() if abs(weight) > ROUNDING}


def overall(results: Sequence[ClaimResult]) -> Verdict:
    """Return the verdict on all claims together."""
    verdicts = {result.verdict for result in results}
    if "does_not" in verdicts:
        return "does_not"
    return "holds" if verdicts == {"holds"} else "cannot_tell"


def sentence(results: Sequence[ClaimResult]) -> str:
    """Return the answer in one sentence."""
    verdict = overall(results)
    if verdict == "holds":
        return f"The paper's claim holds here: {_joined(results)}."
    if verdict == "does_not":
        failed = [result for result in results if result.verdict == "does_not"]
        return f"The paper's claim does not hold here: it is not so that {_joined(failed)}."
    if reason := next((result.reason for result in results if result.reason), None):
        return f"Whether the paper's claim holds can't be told by this sweep: {reason}."
    lacking = [result for result in results if result.difference is None]
    if lacking:
        return f"Whether the paper's claim holds can't be told: settings are lacking to see whether {_joined(lacking)}."
    open_ = [result for result in results if result.verdict == "cannot_tell"]
    num_seeds = min(result.difference.num for result in open_ if result.difference)
    seeds = f"{num_seeds} seed{'' if num_seeds == 1 else 's'}"
    return f"Whether the paper's claim holds here can't be told from {seeds}: it is open whether {_joined(open_)}."


def _verdict(difference: Estimate | None) -> Verdict:
    if difference is None or difference.low is None or difference.high is None:
        return "cannot_tell"
    if difference.low > 0:
        return "holds"
    return "does_not" if difference.high < 0 else "cannot_tell"


def _joined(results: Sequence[ClaimResult]) -> str:
    return "; ".join(result.text for result in results)
