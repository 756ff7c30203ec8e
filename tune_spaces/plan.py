"""The plan of a sweep: its trials, known before it runs, and what they cost.

Trial ids and params are a function of the sweep alone, so a driver that starts again after a
crash finds every trial where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trainer import metric_names
from trainer.spec import PretrainSpec
from tune_spaces.overrides import apply_overrides, flat_params
from tune_spaces.rungs import asha_rungs
from tune_spaces.space import Point, draw, extremes, grid
from tune_spaces.spec import SweepSpec, complete

__all__ = [
    "PlannedTrial",
    "SweepPlan",
    "TrialCost",
    "has_seed_of",
    "plan_sweep",
    "planned_trials",
    "possible_specs",
    "trial_at",
]

SEED = "seed"

# Of ASHA over temperature, learning rate and batch size: last ranked behind 15 updates it lost 0.028 of kNN
# accuracy to the whole grid's best, six times the deviation over seeds (docs/benchmarks.md).
FEW_UPDATES: Final = 100

# What the images, steps, memory, workers and warnings of a trial depend on, each up or down with a number.
_DECIDE_COST: Final = (
    "batch_size",
    "data",
    "encoder",
    "epochs",
    "memory",
    "method",
    "optim.warmup_epochs",
    "precision",
    "projection_head",
    "scaling",
)

_LESS_IS_BETTER: Final = (metric_names.LOSS, metric_names.ALIGNMENT, metric_names.UNIFORMITY)

# What each axis does to a ranking behind few updates.
_MISLED_BY: Final = {
    "optim.base_lr": "a high learning rate pays only once its schedule has come down",
    "optim.warmup_epochs": "a long warm-up has hardly begun to learn",
    "batch_size": "a small batch catches up in longer training (paper, Table B.1, linear scaling: 256 is 7.3 points "
    "behind 8192 at 100 epochs and 2.4 at 800)",
    "loss.temperature": "which temperature is best depends on how long it trains (paper, B.9)",
}


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """One trial: a point of the space under one seed."""

    id: str
    params: dict[str, Any]  # flat: dotted path -> scalar; the seed among them where there are several
    spec: PretrainSpec
    seed: int
    point: Point = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """What one trial computes."""

    spec: PretrainSpec
    steps: int
    images: int  # each epoch counted


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep will compute."""

    trials: Sequence[PlannedTrial]  # (): suggested while it runs
    num_trials: int
    steps: int  # over all trials; an upper bound where trials are suggested or stopped early
    images: int  # likewise, each epoch counted
    costs: Sequence[TrialCost]  # of each trial; of the extremes of the space where trials are suggested
    warnings: tuple[str, ...]


def plan_sweep(sweep: SweepSpec, num_images: Callable[[PretrainSpec], int]) -> SweepPlan:
    """Return the plan of a sweep that `sweep_problems` finds nothing wrong with.

    Args:
        sweep: As asked or complete.
        num_images: Returns how many images an epoch of a trial draws from: its data set may be an axis.
    """
    whole = complete(sweep)
    trials = tuple(planned_trials(whole))
    if whole.search == "optuna":
        num_trials = whole.num_trials_searched()
        costs = [_cost(spec, num_images) for spec in possible_specs(whole)]
        steps = num_trials * max(cost.steps for cost in costs)
        # A batch size between the corners may leave no image out of an epoch.
        images = num_trials * max(num_images(cost.spec) * cost.spec.epochs for cost in costs)
    else:
        num_trials = len(trials)
        costs = [_cost(trial.spec, num_images) for trial in trials]
        steps, images = sum(cost.steps for cost in costs), sum(cost.images for cost in costs)
    specs = [cost.spec for cost in costs]
    warnings = (*_warnings(whole), *(_ranking_warnings(whole, specs, num_images) if whole.scheduler == "asha" else ()))
    return SweepPlan(
        trials=trials, num_trials=num_trials, steps=steps, images=images, costs=tuple(costs), warnings=warnings
    )


def planned_trials(sweep: SweepSpec) -> Iterator[PlannedTrial]:
    """Yield the trials of a complete sweep in order; none where they are suggested while it runs."""
    if sweep.search == "optuna":
        return
    points = grid(sweep.axes()) if sweep.search == "grid" else _draws(sweep)
    index = 0
    for point in points:
        for _ in sweep.seeds:
            yield trial_at(sweep, point, index)
            index += 1


def possible_specs(sweep: SweepSpec) -> list[PretrainSpec]:
    """Return the specs of a complete sweep's trials; the extremes of its space where trials are suggested."""
    if sweep.search != "optuna":
        return [trial.spec for trial in planned_trials(sweep)]
    points = extremes(sweep.axes(), lambda path: path.startswith(_DECIDE_COST))
    return [PretrainSpec.model_validate(apply_overrides(sweep.base, point)) for point in points]


def trial_at(sweep: SweepSpec, point: Point, index: int) -> PlannedTrial:
    """Return the trial of this number: seeds change fastest."""
    seed = point.get(SEED, sweep.seeds[index % len(sweep.seeds)])
    params = flat_params(point) | _seed_params(sweep, seed)
    spec = PretrainSpec.model_validate(apply_overrides(sweep.base, {**point, SEED: seed}))
    return PlannedTrial(id=f"t{index:04d}", params=params, spec=spec, seed=seed, point=point)


def has_seed_of(sweep: SweepSpec, trial_id: str, params: Mapping[str, Any]) -> bool:
    """Return whether flat params have the seed that the trial of this id has in a complete sweep."""
    if SEED in sweep.axes():
        return SEED in params
    seed = sweep.seeds[int(trial_id.removeprefix("t")) % len(sweep.seeds)]
    return params.get(SEED) == _seed_params(sweep, seed).get(SEED)


def _seed_params(sweep: SweepSpec, seed: int) -> dict[str, Any]:
    """Return the seed as a param where there are several."""
    return {SEED: seed} if len(sweep.seeds) > 1 else {}


def _draws(sweep: SweepSpec) -> Iterator[Point]:
    seed = sweep.base_spec().seed
    return (draw(sweep.axes(), seed=seed, index=index) for index in range(sweep.num_samples))


def _cost(spec: PretrainSpec, num_images: Callable[[PretrainSpec], int]) -> TrialCost:
    steps = num_images(spec) // spec.batch_size * spec.epochs
    return TrialCost(spec=spec, steps=steps, images=steps * spec.batch_size)


def _warnings(sweep: SweepSpec) -> Iterator[str]:
    axes = sweep.axes()
    if sweep.scheduler == "asha" and {"loss.temperature", "epochs"} <= axes.keys():
        yield (
            "asha ranks trials early, and temperature and epochs interact: what leads after a few epochs need not lead "
            "at the end (paper, B.9); use fifo, or sweep one of them"
        )
    elif sweep.scheduler != "fifo" and "epochs" in axes:
        yield f"{sweep.scheduler} compares a trial only with others of as many epochs, each on its own schedule"
    if "batch_size" in axes and sweep.base_spec().optim.lr_scaling == "none" and "optim.lr_scaling" not in axes:
        yield "the learning rate does not follow batch_size (optim.lr_scaling is none), so larger batches learn less"
    if sweep.study and sweep.size != "smoke" and not sweep.base_spec().scaling.gpus_per_worker:
        yield (
            f"size {sweep.size} of a study is made for GPUs and this sweep uses none; set base.scaling.gpus_per_worker "
            "to 1, or take size smoke"
        )
    if sweep.mode == "max" and sweep.metric in _LESS_IS_BETTER:
        yield f"{sweep.metric} is better the lower it is, and mode max chooses the highest; set mode to min"
    elif sweep.mode == "min" and "accuracy" in sweep.metric:
        yield f"{sweep.metric} is better the higher it is, and mode min chooses the lowest; set mode to max"
    if sweep.search == "optuna":
        yield "steps and images are upper bounds: what each trial is will be suggested while the sweep runs"


def _ranking_warnings(
    sweep: SweepSpec, specs: Sequence[PretrainSpec], num_images: Callable[[PretrainSpec], int]
) -> Iterator[str]:
    """Yield what speaks against ranking these trials where ASHA does: at a third of their epochs for the last time."""
    ranked = [(spec, asha_rungs(spec.epochs)) for spec in specs if spec.epochs > 1]
    if not ranked:
        yield "asha ranks no trial of one epoch, so it stops none; use fifo"
        return
    fewest = min(rungs[-1] * (num_images(spec) // spec.batch_size) for spec, rungs in ranked)
    if fewest < FEW_UPDATES:
        reasons = "".join(f"; {reason}" for axis, reason in _MISLED_BY.items() if axis in sweep.axes())
        yield (
            f"asha ranks trials for the last time after {fewest} updates, and what leads after fewer than "
            f"{FEW_UPDATES} need not lead at the end{reasons}; use fifo, or more epochs"
        )
    warming = [rungs[0] for spec, rungs in ranked if rungs[0] <= spec.warmup_epochs()]
    if "optim.base_lr" in sweep.axes() and warming:
        yield (
            f"asha first ranks learning rates after epoch {min(warming)}, while they are still warming up: none has "
            "shown what it does at its peak; shorten optim.warmup_epochs, or use fifo"
        )
