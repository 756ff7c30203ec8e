"""All that is wrong with a sweep before it starts, each with its place and what would mend it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from trainer.spec import PretrainSpec, SpecProblem
from tune_spaces.overrides import apply_overrides, listed_values, spec_paths, value_at
from tune_spaces.problems.fields import document_problems, escaped, unknown_path_detail, value_refusal
from tune_spaces.problems.metric import metric_problems
from tune_spaces.problems.points import point_problems
from tune_spaces.space import AnyDomain, Choice, LogUniform, RandInt, Uniform, alternatives, grid
from tune_spaces.spec import SweepSpec, complete, merged_base
from tune_spaces.studies import get_study, list_studies

__all__ = ["sweep_problems"]

_STAND_IN: Mapping[str, Any] = {"data": {"dataset": "stand-in"}}


def sweep_problems(
    sweep: SweepSpec,
    *,
    has_labels: bool | None = None,
    here: Callable[[PretrainSpec], Iterable[SpecProblem]] | None = None,
) -> list[SpecProblem]:
    """Return everything that is wrong with a sweep, [] if it can run; pointers are into the sweep spec.

    Args:
        sweep: As asked.
        has_labels: Whether all data sets of its trials have labels; None: not known, not judged.
        here: Returns what makes a trial impossible where it is to run; None: not known, not judged.
    """
    if sweep.study is not None and get_study(sweep.study) is None:
        return [_study_unknown(sweep.study)]
    problems = [
        *(_placed(problem, "/base") for problem in document_problems(merged_base(sweep))),
        *_seed_problems(sweep),
        *_axes_problems(sweep.space or {}),
    ]
    if problems:
        return [*problems, *_shape_problems(sweep)]
    whole = complete(sweep)
    problems += _shape_problems(whole)
    if not problems:
        problems += _size_problems(whole)
        problems += metric_problems(whole, has_labels=has_labels)
        problems += _label_problems(whole, has_labels=has_labels)
    return problems or point_problems(whole, here=here)


def _placed(problem: SpecProblem, prefix: str) -> SpecProblem:
    return problem.model_copy(update={"pointer": prefix + problem.pointer})


def _study_unknown(name: str) -> SpecProblem:
    known = [study.name for study in list_studies()]
    detail = f"there is no study {name!r}; known are {', '.join(known)}"
    return SpecProblem(pointer="/study", code="study_unknown", detail=detail, allowed=known)


def _label_problems(sweep: SweepSpec, *, has_labels: bool | None) -> list[SpecProblem]:
    study = get_study(sweep.study) if sweep.study else None
    if has_labels is not False or study is None or not study.needs_labels:
        return []
    dataset = sweep.base_spec().data.dataset
    detail = (
        f"study {study.name} needs labels and data set {dataset} has none; name one with labels in base.data.dataset"
    )
    involves = ("/base/data/dataset",)
    return [SpecProblem(pointer="/study", code="study_needs_labels", detail=detail, involves=involves)]


# --- the sweep as a whole -------------------------------------------------------------------------


def _shape_problems(sweep: SweepSpec) -> Iterator[SpecProblem]:
    """Yield what search and space say against each other."""
    if sweep.study is None and not sweep.space:
        detail = "say what varies: a space (dotted path -> choice, uniform, loguniform or randint), or a study"
        yield SpecProblem(pointer="/space", code="space_missing", detail=detail, involves=("/study",))
    if sweep.search != "grid":
        return
    if sweep.num_samples != 1:
        detail = f"a grid has each point once, and num_samples is {sweep.num_samples}; repeat points by several seeds"
        yield SpecProblem(
            pointer="/num_samples", code="num_samples_of_grid", detail=detail, allowed=[1], involves=("/search",)
        )
    for path, place, domain in _domains(sweep.space or {}):
        if not isinstance(domain, Choice) and not listed_values(path):  # of those no search takes a range
            detail = f"a grid needs listed values, and {path} has a range; use choice, or search random or optuna"
            yield SpecProblem(
                pointer=place, code="range_in_grid", detail=detail, allowed=["choice"], involves=("/search",)
            )


def _size_problems(sweep: SweepSpec) -> list[SpecProblem]:
    limit = sweep.limits.max_trials
    if sweep.search == "grid":
        points = sum(1 for _ in islice(grid(sweep.axes()), limit + 1))
        if points * len(sweep.seeds) <= limit:
            return []
        size = f"{points * len(sweep.seeds)}" if points <= limit else f"more than {limit}"
        pointer, mend = "/space", "take values away, or search random"
    else:
        if sweep.num_trials_searched() <= limit:
            return []
        size, pointer, mend = f"{sweep.num_trials_searched()}", "/num_samples", "lower num_samples"
    detail = f"the sweep has {size} trials and limits.max_trials is {limit}; {mend}, or raise the limit"
    return [
        SpecProblem(
            pointer=pointer,
            code="too_many_trials",
            detail=detail,
            allowed=f"<= {limit} trials",
            involves=("/seeds", "/limits/max_trials"),
        )
    ]


def _seed_problems(sweep: SweepSpec) -> Iterator[SpecProblem]:
    if len(set(sweep.seeds)) < len(sweep.seeds):
        yield SpecProblem(pointer="/seeds", code="duplicate", detail="seeds: one of them is given twice")
    if "seed" in (sweep.space or {}) and "seeds" in sweep.model_fields_set:
        detail = "seed is an axis of space, and seeds is given too; keep one"
        yield SpecProblem(pointer="/space/seed", code="axes_contradict", detail=detail, involves=("/seeds",))


# --- the axes -------------------------------------------------------------------------------------


def _domains(space: Mapping[str, Any]) -> Iterator[tuple[str, str, AnyDomain]]:
    """Yield (path, pointer, domain) of every domain of every axis."""
    for path, domains in space.items():
        place = f"/space/{escaped(path)}"
        if isinstance(domains, tuple):
            yield from ((path, f"{place}/{index}", domain) for index, domain in enumerate(domains))
        else:
            yield path, place, domains


def _axes_problems(space: Mapping[str, Any]) -> Iterator[SpecProblem]:
    for path in space:
        if path not in spec_paths():
            detail, allowed = unknown_path_detail(path)
            yield SpecProblem(pointer=f"/space/{escaped(path)}", code="path_unknown", detail=detail, allowed=allowed)
        elif path.partition(".")[0] == "limits":
            detail = f"{path} decides no result; set the limits of the sweep"
            yield SpecProblem(pointer=f"/space/{escaped(path)}", code="path_not_swept", detail=detail)
        for other in space:
            if path.startswith(f"{other}."):
                detail = f"{path} is a part of {other}, which is an axis too; keep one"
                pointer, involves = f"/space/{escaped(path)}", (f"/space/{escaped(other)}",)
                yield SpecProblem(pointer=pointer, code="axes_contradict", detail=detail, involves=involves)
    for path, place, domain in _domains(space):
        yield from _condition_problems(path, place, domain, space)
        if listed_values(path) and not isinstance(domain, Choice):
            yield _range_of_listed_values(path, place, domain)
        elif path in spec_paths():
            yield from _value_problems(path, place, domain)


def _condition_problems(path: str, place: str, domain: AnyDomain, space: Mapping[str, Any]) -> Iterator[SpecProblem]:
    before = list(space)[: list(space).index(path)]
    for other, values in domain.when.items():
        pointer = f"{place}/when/{escaped(other)}"
        if other not in before:
            detail = f"{path} depends on {other}, which is no axis written before it"
            yield SpecProblem(pointer=pointer, code="condition_unknown", detail=detail, allowed=before)
            continue
        taken = [
            value for choice in alternatives(space[other]) if isinstance(choice, Choice) for value in choice.choice
        ]
        if taken and not any(value in taken for value in values):
            detail = f"{path} depends on {other} being {_listed(values)}, which it never is"
            yield SpecProblem(pointer=pointer, code="axes_contradict", detail=detail, allowed=taken)


def _value_problems(path: str, place: str, domain: AnyDomain) -> Iterator[SpecProblem]:
    """Yield the values that the field refuses, each at its place, and values given twice."""
    key = _key(domain)
    seen: set[str] = set()
    for index, value in enumerate(domain.values()):
        pointer = f"{place}/{key}/{index}"
        refusal = value_refusal(path, value)
        if refusal is not None:
            hint = (
                "; use randint" if isinstance(domain, Uniform | LogUniform) and refusal[0].endswith("integer") else ""
            )
            detail = f"{path} = {_shown(value)}: {refusal[0]}{hint}"
            yield SpecProblem(pointer=pointer, code="value_refused", detail=detail, allowed=refusal[1])
            continue
        normal = _normal(path, value)
        if isinstance(domain, Choice) and normal in seen:
            yield SpecProblem(pointer=pointer, code="duplicate", detail=f"{path} = {_shown(value)} is given twice")
        seen.add(normal)
    yield from _range_problems(path, f"{place}/{key}", domain)


def _range_problems(path: str, pointer: str, domain: AnyDomain) -> Iterator[SpecProblem]:
    if isinstance(domain, Choice):
        return
    low, high = domain.values()
    if isinstance(domain, LogUniform) and low <= 0:
        yield SpecProblem(pointer=pointer, code="range_invalid", detail=f"{path}: loguniform needs bounds above 0")
    elif low > high or (low == high and not isinstance(domain, RandInt)):
        detail = f"{path}: {low:g} to {high:g} is no range; give the lower bound first"
        yield SpecProblem(pointer=pointer, code="range_invalid", detail=detail, allowed="low < high")


def _range_of_listed_values(path: str, place: str, domain: AnyDomain) -> SpecProblem:
    """Return that a range has values between its bounds that a field of listed values refuses."""
    low, high = domain.values()
    listed = listed_values(path)
    detail = (
        f"{path}: {_shown(low)} to {_shown(high)} is a range, and the field takes one of "
        f"{', '.join(_shown(value) for value in listed)}; use choice"
    )
    pointer = f"{place}/{_key(domain)}"
    return SpecProblem(pointer=pointer, code="range_of_listed_values", detail=detail, allowed=list(listed))


def _key(domain: AnyDomain) -> str:
    """Return the one key that says what a domain is."""
    return next(iter(domain.model_dump(exclude={"when"})))


def _normal(path: str, value: Any) -> str:
    """Return a value as the field keeps it: 1 and 1.0 are the same temperature."""
    document = PretrainSpec.model_validate(apply_overrides(_STAND_IN, {path: value}))
    return json.dumps(value_at(document.model_dump(mode="json"), path), sort_keys=True)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 64 else text[:64] + "..."  # noqa: PLR2004 - as much of a wrong value as is worth reading


def _listed(values: tuple[Any, ...]) -> str:
    return " or ".join(_shown(value) for value in values)
