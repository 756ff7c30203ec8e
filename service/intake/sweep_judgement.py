"""What is wrong with a sweep here: in itself, in its base, and in single values of its space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from service.intake.environment import Environment, environment_problems
from service.intake.plan import budget_problems, plan_of_sweep
from service.intake.validation import check_fields, overlaps, place
from service.schemas import PlanView
from trainer.spec import DataSpec, PretrainSpec, SpecProblem
from tune_spaces.overrides import apply_overrides
from tune_spaces.problems.fields import escaped, pointer_of
from tune_spaces.problems.sweep import sweep_problems
from tune_spaces.spec import SweepSpec, merged_base, resolve

__all__ = ["judge_sweep"]

_OF_IMAGES = ("data.dataset", "data.validation_ratio")  # what decides how many images an epoch has


def judge_sweep(sweep: SweepSpec, environment: Environment) -> tuple[list[SpecProblem], PlanView | None]:
    """Return every problem with its pointer into the sweep spec, and the plan if there is none."""
    problems = sweep_problems(sweep)
    if problems:
        return [*problems, *_problems_of_rest(sweep, problems, environment)], None
    resolved = resolve(sweep)
    base = PretrainSpec.model_validate(resolved["base"])
    space: dict[str, Any] = resolved["space"]
    problems = [*_base_problems(base, space, environment), *_value_problems(base, space, environment)]
    if problems:
        return problems, None
    variants = [base, *(_variant(base, path, value) for path, _, value in _values(space) if path in _OF_IMAGES)]
    num_images = _num_images(environment)
    problems = sweep_problems(
        sweep,
        has_labels=all(environment.dataset(variant.data.dataset).has_labels for variant in variants),
        num_images=num_images,
    )
    if problems:
        return problems, None
    plan = plan_of_sweep(
        sweep,
        base,
        num_images=num_images,
        images_per_second=environment.images_per_second,
        capacity=environment.capacity,
        space=space,
    )
    return budget_problems(plan, sweep.limits.max_images), plan


def _num_images(environment: Environment) -> Callable[[PretrainSpec], int]:
    """Return `environment.num_images`, asked once for each data set as the trials use it."""
    known: dict[DataSpec, int] = {}

    def num_images(spec: PretrainSpec) -> int:
        if spec.data not in known:
            known[spec.data] = environment.num_images(spec)
        return known[spec.data]

    return num_images


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


def _value_problems(base: PretrainSpec, space: Mapping[str, Any], environment: Environment) -> Iterator[SpecProblem]:
    """Yield what is wrong here with single listed values, each at its place in its list."""
    varied = {pointer_of(path) for path in space}
    for path, pointer, value in _values(space):
        for problem in environment_problems(_variant(base, path, value), environment):
            touched = {problem.pointer, *problem.involves} & varied
            if problem.pointer == pointer_of(path) or touched == {pointer_of(path)}:
                yield problem.model_copy(update={"pointer": pointer, "involves": ()})


def _values(space: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (path, pointer, value) of every listed value; a path may have several lists, with conditions."""
    for path, domains in space.items():
        axis = f"/space/{escaped(path)}"
        several = {f"{axis}/{index}": domain for index, domain in enumerate(domains)}
        for pointer, domain in (several if isinstance(domains, list) else {axis: domains}).items():
            for index, value in enumerate(domain.get("choice", ())):
                yield path, f"{pointer}/choice/{index}", value


def _variant(base: PretrainSpec, path: str, value: Any) -> PretrainSpec:
    return PretrainSpec.model_validate(apply_overrides(base.model_dump(mode="json"), {path: value}))
