"""What is wrong with a sweep here: in itself, in its base, and in single values of its space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.dotted_paths import pointer_of, with_override
from service.environment import Environment, environment_problems
from service.plan import budget_problems, plan_of_sweep
from service.schemas import PlanView
from service.validation import check_fields, overlaps, place
from trainer.spec import PretrainSpec, SpecProblem
from tune_spaces.spec import SweepSpec, merged_base, resolve, sweep_problems

__all__ = ["judge_sweep"]


def judge_sweep(sweep: SweepSpec, environment: Environment) -> tuple[list[SpecProblem], PlanView | None]:
    """Return every problem with its pointer into the sweep spec, and the plan if there is none."""
    problems = sweep_problems(sweep)
    if problems:
        return [*problems, *_problems_of_rest(sweep, problems, environment)], None
    resolved = resolve(sweep)
    base = PretrainSpec.model_validate(resolved["base"])
    space: dict[str, Any] = resolved["space"]
    problems = _base_problems(base, space, environment)
    for path, domain in space.items():
        problems += _choice_problems(base, path, domain.get("choice", ()), environment)
    if problems:
        return problems, None
    num_images = environment.num_images(base)
    has_labels = environment.dataset(base.data.dataset).has_labels
    problems = sweep_problems(sweep, has_labels=has_labels, num_images=num_images)
    if problems:
        return problems, None
    plan = plan_of_sweep(sweep, base, num_images=num_images, space=space)
    return budget_problems(plan, sweep.limits.max_images), plan


def _problems_of_rest(sweep: SweepSpec, found: list[SpecProblem], environment: Environment) -> list[SpecProblem]:
    """Return what the environment says of the parts of the base that nothing is wrong with yet."""
    stand_in = "stand-in"
    placeholders = {"/data": {"dataset": stand_in}, "/data/dataset": stand_in}
    base, _ = check_fields(PretrainSpec, merged_base(sweep), placeholders=placeholders)
    if base is None:
        return []
    problems = _base_problems(base, sweep.space or {}, environment)
    wrong = [problem.pointer for problem in found]
    return [
        problem
        for problem in problems
        if not any(overlaps(pointer, bad) for pointer in (problem.pointer, *problem.involves) for bad in wrong)
    ]


def _base_problems(base: PretrainSpec, space: Mapping[str, Any], environment: Environment) -> list[SpecProblem]:
    varied = {pointer_of(path) for path in space}
    found = environment_problems(base, environment)
    return [place(problem, "/base") for problem in found if varied.isdisjoint((problem.pointer, *problem.involves))]


def _choice_problems(base: PretrainSpec, path: str, choices: list[Any], environment: Environment) -> list[SpecProblem]:
    """Return what is wrong here with single values of one dimension, each at its place in the list."""
    problems: list[SpecProblem] = []
    for index, value in enumerate(choices):
        variant = PretrainSpec.model_validate(with_override(base.model_dump(mode="json"), path, value))
        for problem in environment_problems(variant, environment):
            if problem.pointer == pointer_of(path):
                moved = {"pointer": f"/space/{path}/choice/{index}", "involves": ()}
                problems.append(problem.model_copy(update=moved))
    return problems
