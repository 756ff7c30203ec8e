"""What a spec will compute, before it runs: shown by `validate_only` and kept with the experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from service.intake.memory_estimate import step_memory_bytes
from service.schemas import PlanView
from trainer.spec import PretrainSpec, SpecProblem
from tune_spaces.plan import plan_sweep
from tune_spaces.spec import SweepSpec

__all__ = ["budget_problems", "plan_of_sweep", "plan_pretrain"]

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
        time_s=images / images_per_second if images_per_second else None,
        warnings=_warnings(spec, num_images=num_images),
    )


def plan_of_sweep(
    sweep: SweepSpec, base: PretrainSpec, *, num_images: Callable[[PretrainSpec], int], space: Mapping[str, Any]
) -> PlanView:
    """Return the plan of a sweep; what differs between its trials is null."""
    plan = plan_sweep(sweep, num_images)
    is_fixed = space.keys().isdisjoint(("batch_size", "data.dataset", "data.validation_ratio"))
    return PlanView(
        trials=plan.num_trials,
        steps=plan.steps,
        images=plan.images,
        steps_per_epoch=num_images(base) // base.batch_size if is_fixed else None,
        images_dropped_per_epoch=num_images(base) % base.batch_size if is_fixed else None,
        negatives_per_anchor=2 * (base.batch_size - 1) if is_fixed else None,
        memory_bytes=step_memory_bytes(base),
        time_s=None,  # how many trials run at once is not known before
        warnings=list(plan.warnings),
    )


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
