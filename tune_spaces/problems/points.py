"""Which points of a sound space are impossible: axes that contradict each other or the base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from trainer.spec import PretrainSpec, SpecProblem, spec_problems
from tune_spaces.overrides import apply_overrides, flat_value
from tune_spaces.problems.fields import escaped, pointer_of
from tune_spaces.space import Choice, Point, alternatives, corners, draw, grid
from tune_spaces.spec import SweepSpec

__all__ = ["point_problems"]

MAX_REPORTED = 50


def point_problems(
    sweep: SweepSpec, *, here: Callable[[PretrainSpec], Iterable[SpecProblem]] | None
) -> list[SpecProblem]:
    """Return what is impossible at the points of a complete sweep, once for each value it rests on.

    Args:
        sweep: A complete sweep.
        here: Returns what makes a trial impossible where it is to run; None: not known, not judged.
    """
    found: dict[tuple[str, str], SpecProblem] = {}
    for point in _points(sweep):
        spec = PretrainSpec.model_validate(apply_overrides(sweep.base, point))
        for problem in (*spec_problems(spec), *(here(spec) if here else ())):
            placed = _placed(problem, point, sweep.axes())
            found.setdefault((placed.pointer, placed.code), placed)
        if len(found) >= MAX_REPORTED:
            break
    return list(found.values())


def _points(sweep: SweepSpec) -> Iterator[Point]:
    """Yield the points that will run, or, where suggestions decide, those at the corners."""
    if sweep.search == "grid":
        return grid(sweep.axes())
    if sweep.search == "random":
        seed = sweep.base_spec().seed
        return (draw(sweep.axes(), seed=seed, index=index) for index in range(sweep.num_samples))
    return corners(sweep.axes())


def _placed(problem: SpecProblem, point: Point, space: Mapping[str, Any]) -> SpecProblem:
    """Return the problem at the axis it rests on; at the base where it rests on none."""
    pointers = (problem.pointer, *problem.involves)
    axes = [path for pointer in pointers for path in point if _is_of(pointer, path)]
    if not axes:
        return problem.model_copy(update={"pointer": f"/base{problem.pointer}", "involves": ()})
    first = axes[0]
    setting = ", ".join(f"{path} = {flat_value(point[path])}" for path in dict.fromkeys(axes))
    return problem.model_copy(
        update={
            "pointer": f"/space/{escaped(first)}{_value_place(space[first], point[first])}",
            "detail": f"{problem.detail} (at {setting})",
            "involves": tuple(f"/space/{escaped(path)}" for path in dict.fromkeys(axes[1:])),
        }
    )


def _is_of(pointer: str, path: str) -> bool:
    return pointer == pointer_of(path) or pointer.startswith(f"{pointer_of(path)}/")


def _value_place(domains: Any, value: Any) -> str:
    for index, domain in enumerate(alternatives(domains)):
        if isinstance(domain, Choice) and value in domain.choice:
            prefix = f"/{index}" if isinstance(domains, tuple) else ""
            return f"{prefix}/choice/{domain.choice.index(value)}"
    return ""
