"""Whether the metric that a sweep is judged by is there to be judged by."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from trainer import metric_names as names
from trainer.spec import PretrainSpec, SpecProblem
from tune_spaces.overrides import apply_overrides
from tune_spaces.space import corners
from tune_spaces.spec import SweepSpec

__all__ = ["metric_problems"]

_BY_STEP: Final = (names.LOSS, names.CONTRASTIVE_ACCURACY, names.ENTROPY)
_ON_TEST: Final = (names.TEST_KNN_ACCURACY, names.TEST_LINEAR_ACCURACY, names.TEST_FINE_TUNED_ACCURACY)
SELECTING: Final = tuple(name for name in (*_BY_STEP, *names.EVALUATION_METRICS) if name not in _ON_TEST)
BY_EPOCH: Final = (
    *_BY_STEP,  # as the last step of the epoch had them
    names.KNN_ACCURACY,
    names.KNN_ACCURACY_K200,
    names.ALIGNMENT,
    names.UNIFORMITY,
    names.H_STD,
    names.H_EFFECTIVE_RANK,
)
_WITHOUT_LABELS: Final = frozenset(BY_EPOCH) - {names.KNN_ACCURACY, names.KNN_ACCURACY_K200}
_OF_CONTRAST: Final = (names.CONTRASTIVE_ACCURACY, names.ENTROPY, names.ALIGNMENT, names.UNIFORMITY)
_EVALUATION_SWITCHES: Final[Mapping[str, tuple[str, ...]]] = {
    names.LINEAR_ACCURACY: ("linear_probe",),
    names.LINEAR_ACCURACY_Z: ("probe_z",),
    names.LINEAR_ACCURACY_1PCT: ("label_fractions",),
    names.LINEAR_ACCURACY_10PCT: ("label_fractions",),
    names.FINE_TUNED_ACCURACY: ("fine_tune",),
    names.FINE_TUNED_ACCURACY_1PCT: ("fine_tune", "label_fractions"),
    names.FINE_TUNED_ACCURACY_10PCT: ("fine_tune", "label_fractions"),
    **{
        names.transformation_accuracy(task, source): ("transformation_prediction",)
        for task in names.TRANSFORMATION_TASKS
        for source in "hz"
    },
}
MAX_POINTS = 1000  # that are asked whether they log the metric


def metric_problems(sweep: SweepSpec, *, has_labels: bool | None) -> list[SpecProblem]:
    """Return why a complete sweep cannot be judged by its metric."""
    metric = sweep.metric
    if metric not in SELECTING:
        return [_not_selecting(metric)]
    if has_labels is False and metric not in _WITHOUT_LABELS:
        detail = (
            f"{metric} needs labels and the data set has none; choose by {names.UNIFORMITY} (mode min) or another that "
            "needs none"
        )
        return [_problem("metric_needs_labels", detail, allowed=sorted(_WITHOUT_LABELS))]
    if sweep.scheduler != "fifo" and metric not in BY_EPOCH:
        detail = f"{metric} is not measured while a trial runs, so {sweep.scheduler} cannot stop one by it; use fifo"
        return [_problem("metric_not_by_epoch", detail, allowed=list(BY_EPOCH), involves=("/scheduler",))]
    points = corners(sweep.axes(), most=MAX_POINTS)
    specs = [PretrainSpec.model_validate(apply_overrides(sweep.base, point)) for point in points]
    if sweep.scheduler != "fifo" and metric not in _BY_STEP and _is_measured_at_ends_only(specs):
        every = specs[0].evaluation.knn_every_epochs
        detail = (
            f"{metric} is measured at the end of a trial alone, since evaluation.knn_every_epochs is {every}, so "
            f"{sweep.scheduler} cannot stop one by it; set it to 1, or use fifo"
        )
        involves = ("/base/evaluation/knn_every_epochs", "/base/epochs", "/scheduler")
        return [_problem("metric_not_by_epoch", detail, allowed=list(_BY_STEP), involves=involves)]
    reasons = [_why_missing(metric, spec) for spec in specs]
    if reasons and all(reason is not None for reason in reasons):
        return [_problem("metric_never_logged", f"{metric} is never logged: {reasons[0]}", involves=("/base",))]
    return []


def _not_selecting(metric: str) -> SpecProblem:
    """Return why no trial is best by this metric."""
    if metric in _ON_TEST:
        detail = f"{metric} is read once at the end and chooses nothing; choose by {metric.removeprefix('test_')}"
        return _problem("metric_of_test_split", detail, allowed=list(SELECTING))
    if metric in names.ALL_METRICS:
        detail = f"{metric} says how a trial ran and not what it learned, so no trial is best by it"
        return _problem("metric_of_no_result", detail, allowed=list(SELECTING))
    near = difflib.get_close_matches(metric, SELECTING, n=1, cutoff=0.0)
    detail = f"metric {metric!r} is never logged; did you mean {near[0]}?"
    return _problem("metric_unknown", detail, allowed=list(SELECTING))


def _is_measured_at_ends_only(specs: Sequence[PretrainSpec]) -> bool:
    """Return whether no trial of several epochs is evaluated before its last."""
    several = [spec for spec in specs if spec.epochs > 1]
    return bool(several) and not any(0 < spec.evaluation.knn_every_epochs < spec.epochs for spec in several)


def _why_missing(metric: str, spec: PretrainSpec) -> str | None:
    for switch in _EVALUATION_SWITCHES.get(metric, ()):
        if not getattr(spec.evaluation, switch):
            return f"set base.evaluation.{switch} to true"
    if metric == names.LINEAR_ACCURACY_Z or metric.endswith("_z") or metric in _OF_CONTRAST:
        return "the supervised method has no projection z" if spec.method == "supervised" else None
    return None


def _problem(code: str, detail: str, *, allowed: Any = None, involves: tuple[str, ...] = ()) -> SpecProblem:
    return SpecProblem(pointer="/metric", code=code, detail=detail, allowed=allowed, involves=involves)
