"""What a spec will compute, before it runs: shown by `validate_only` and kept with the experiment."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from service.intake.memory_estimate import step_memory_bytes
from service.ports import Capacity
from service.schemas import PlanView
from trainer.spec import PretrainSpec, SpecProblem
from tune_spaces.driver.capacity import trials_at_once
from tune_spaces.plan import SweepPlan, plan_sweep
from tune_spaces.spec import SweepSpec

__all__ = ["budget_problems", "plan_of_sweep", "plan_pretrain"]

T = TypeVar("T")

SMALL_BATCH = 64  # below it an anchor has so few negatives that a person should know
WASTEFUL_DROP = 0.2  # of an epoch's images


def plan_pretrain(spec: PretrainSpec, *, num_images: int, images_per_second: float | None) -> PlanView:
    """Return the plan of one pretraining on `num_images` images an epoch, at least one batch.

    `images_per_second` is the rate that others like it reached here, None where there is none.
    """
    steps_per_epoch = num_images // spec.batch_size
    steps = steps_per_epoch * spec.epochs
    images = steps * spec.batch_size
    return PlanView(
        trials=1,
        steps=steps,
        images=images,
        steps_per_epoch=steps_per_epoch,
        images_dropped_per_epoch=num_images - steps_per_epoch * spec.batch_size,
        negatives_per_anchor=2 * (spec.batch_size - 1),
        memory_bytes=step_memory_bytes(spec),
        trials_at_once=1,
        time_s=images / images_per_second if images_per_second else None,
        warnings=_warnings(spec, num_images=num_images),
    )


def plan_of_sweep(
    sweep: SweepSpec,
    base: PretrainSpec,
    *,
    num_images: Callable[[PretrainSpec], int],
    images_per_second: Callable[[PretrainSpec], float | None],
    capacity: Capacity | None,
    space: Mapping[str, Any],
) -> PlanView:
    """Return the plan of a sweep; what differs between its trials is null.

    Args:
        sweep: As asked.
        base: Of the complete sweep.
        num_images: Returns how many images an epoch of a trial draws from.
        images_per_second: Returns the rate that others like a trial reached here, None where there is none.
        capacity: Of the cluster, None where it does not answer.
        space: Of the complete sweep.
    """
    plan = plan_sweep(sweep, num_images)
    is_fixed = space.keys().isdisjoint(("batch_size", "data", "data.dataset", "data.validation_ratio"))
    at_once = _num_at_once(plan, sweep, capacity)
    return PlanView(
        trials=plan.num_trials,
        steps=plan.steps,
        images=plan.images,
        steps_per_epoch=num_images(base) // base.batch_size if is_fixed else None,
        images_dropped_per_epoch=num_images(base) % base.batch_size if is_fixed else None,
        negatives_per_anchor=2 * (base.batch_size - 1) if is_fixed else None,
        memory_bytes=max(_once_for_each(step_memory_bytes, _sized, plan)),
        trials_at_once=at_once,
        time_s=_sweep_time_s(plan, at_once, images_per_second),
        warnings=list(plan.warnings),
    )


def _num_at_once(plan: SweepPlan, sweep: SweepSpec, capacity: Capacity | None) -> int | None:
    """Return how many trials the driver will run at a time."""
    if capacity is None:
        return None
    cluster = {"CPU": capacity.cpus_total, "GPU": capacity.gpus_total}
    specs = (cost.spec for cost in plan.costs)
    return trials_at_once(specs, cluster, allowed=sweep.max_concurrent_trials, num_trials=plan.num_trials)


def _sweep_time_s(
    plan: SweepPlan, at_once: int | None, images_per_second: Callable[[PretrainSpec], float | None]
) -> float | None:
    rates = _once_for_each(images_per_second, _placed, plan)
    taken_s = [cost.images / rate for cost, rate in zip(plan.costs, rates, strict=True) if rate]
    if at_once is None or len(taken_s) < len(plan.costs):
        return None
    whole_s = sum(taken_s) if plan.trials else plan.num_trials * max(taken_s)
    return max(whole_s / at_once, *taken_s)  # no sweep is shorter than its longest trial


def _once_for_each(
    ask: Callable[[PretrainSpec], T], key_of: Callable[[PretrainSpec], Hashable], plan: SweepPlan
) -> list[T]:
    """Return the answer for each trial, asked once for those that are alike in `key_of`."""
    known: dict[Hashable, T] = {}
    for cost in plan.costs:
        if key_of(cost.spec) not in known:
            known[key_of(cost.spec)] = ask(cost.spec)
    return [known[key_of(cost.spec)] for cost in plan.costs]


def _placed(spec: PretrainSpec) -> Hashable:
    """Return what the speed of a trial is known by."""
    return spec.encoder, spec.data.image_size, spec.scaling


def _sized(spec: PretrainSpec) -> Hashable:
    """Return what the memory of a trial's step depends on."""
    return _placed(spec), spec.batch_size, spec.memory, spec.precision, spec.projection_head


def budget_problems(plan: PlanView, max_images: int | None) -> list[SpecProblem]:
    """Return the refusal of a plan that costs more images than `limits.max_images`."""
    if max_images is None or plan.images <= max_images:
        return []
    detail = (
        f"the plan sees {plan.images} images ({plan.steps} steps) and limits.max_images is {max_images}; "
        "lower epochs or trials, or raise the limit"
    )
    return [
        SpecProblem(
            pointer="/limits/max_images",
            code="over_budget",
            detail=detail,
            allowed=f">= {plan.images}",
            involves=("/epochs", "/batch_size", "/data"),
        )
    ]


def _warnings(spec: PretrainSpec, *, num_images: int) -> list[str]:
    dropped = num_images % spec.batch_size
    found: list[str] = []
    if dropped > WASTEFUL_DROP * num_images:
        found.append(f"{dropped} of {num_images} images are left out of each epoch, as they fill no whole batch")
    if spec.method == "simclr" and spec.batch_size < SMALL_BATCH:
        found.append(
            f"each anchor has only {2 * (spec.batch_size - 1)} negatives; expect a weaker encoder (paper, Fig. 9)"
        )
    return found
