"""What is wrong with a sweep here: in itself, and at each point that may run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from service.intake.environment import Environment, environment_problems
from service.intake.plan import budget_problems, plan_of_sweep
from service.intake.validation import check_fields, overlaps, place
from service.schemas import PlanView
from trainer.errors import DataError
from trainer.spec import DataSpec, PretrainSpec, SpecProblem
from tune_spaces.plan import possible_specs
from tune_spaces.problems.fields import pointer_of
from tune_spaces.problems.sweep import sweep_problems
from tune_spaces.spec import SweepSpec, complete, merged_base

__all__ = ["judge_sweep"]


def judge_sweep(sweep: SweepSpec, environment: Environment) -> tuple[list[SpecProblem], PlanView | None]:
    """Return every problem with its pointer into the sweep spec, and the plan if there is none."""
    problems = sweep_problems(sweep)
    if problems:
        return [*problems, *_problems_of_rest(sweep, problems, environment)], None
    whole = complete(sweep)
    problems = sweep_problems(sweep, has_labels=_have_labels(whole, environment), here=_judge(environment))
    if problems:
        return problems, None
    plan = plan_of_sweep(
        sweep,
        whole.base_spec(),
        num_images=_num_images(environment),
        images_per_second=environment.images_per_second,
        capacity=environment.capacity,
        space=whole.axes(),
    )
    return budget_problems(plan, sweep.limits.max_images), plan


def _have_labels(sweep: SweepSpec, environment: Environment) -> bool:
    """Return whether no data set of the trials is known to have none; what cannot be asked is told at its point."""
    is_varied = any(path.partition(".")[0] == "data" for path in sweep.axes())
    specs = possible_specs(sweep) if is_varied else [sweep.base_spec()]
    for name in {spec.data.dataset for spec in specs}:
        try:
            if not environment.dataset(name).has_labels:
                return False
        except DataError:
            continue
    return True


def _judge(environment: Environment) -> Callable[[PretrainSpec], Iterable[SpecProblem]]:
    """Return `environment_problems`, asked once for each of the trials that are alike to it."""
    known: dict[Hashable, list[SpecProblem]] = {}

    def judge(spec: PretrainSpec) -> list[SpecProblem]:
        alike = (spec.data, spec.scaling, spec.method, spec.batch_size)
        if alike not in known:
            known[alike] = environment_problems(spec, environment)
        return known[alike]

    return judge


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
    """Return what the environment says of the base that no axis may change."""
    varied = [pointer_of(path) for path in space]
    return [
        place(problem, "/base")
        for problem in environment_problems(base, environment)
        if not any(overlaps(pointer, axis) for pointer in (problem.pointer, *problem.involves) for axis in varied)
    ]
