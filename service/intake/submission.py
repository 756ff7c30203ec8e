"""From a request's body to an experiment that can run, or to everything that is wrong with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from service.edge.problems import Problem
from service.intake.environment import Environment, environment_problems
from service.intake.plan import budget_problems, plan_pretrain
from service.intake.sweep_judgement import judge_sweep
from service.intake.validation import check_fields, independent, place
from service.schemas import FieldProblem, PlanView, PretrainSubmission, SweepSubmission
from trainer.spec import PretrainSpec, SpecProblem, spec_problems
from tune_spaces.spec import SweepSpec, resolve

__all__ = ["Submission", "check_submission", "refuse"]

_STAND_IN = {"dataset": "stand-in"}  # a name that can be built into a spec; never looked up
_PLACEHOLDERS: Mapping[str, Any] = {
    "/name": "stand-in",
    "/spec": {"data": _STAND_IN},
    "/spec/data": _STAND_IN,
    "/spec/data/dataset": _STAND_IN["dataset"],
}


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A request that was found good."""

    name: str
    kind: Literal["pretrain", "sweep"]
    labels: Mapping[str, str]
    priority: int
    request: dict[str, Any]  # the spec as asked
    spec: dict[str, Any]  # resolved
    spec_digest: str
    plan: PlanView
    max_attempts: int
    wall_time_s: int


def check_submission(body: Mapping[str, Any], environment: Environment) -> Submission:
    """Return the submission in `body`; reads data sets, so call it off the event loop.

    Raises:
        Problem: 422 with every error there is.
    """
    kind = body.get("kind")
    if kind not in ("pretrain", "sweep"):
        # The kind decides what the rest should be; the parts that both share are judged all the same.
        detail = "kind is required" if "kind" not in body else "kind: there is no such kind"
        wrong = FieldProblem(pointer="/kind", code="kind_unknown", detail=detail, allowed=["pretrain", "sweep"])
        _, shared = check_fields(PretrainSubmission, {**body, "kind": "pretrain"}, placeholders=_PLACEHOLDERS)
        refuse([wrong, *(problem for problem in shared if not problem.pointer.startswith("/spec/"))])
    model: type[PretrainSubmission | SweepSubmission] = PretrainSubmission if kind == "pretrain" else SweepSubmission
    request, problems = check_fields(model, dict(body), placeholders=_PLACEHOLDERS)
    if request is None:
        refuse(problems)
    if isinstance(request, PretrainSubmission):
        judged, plan = _judge_pretrain(request.spec, environment)
    else:
        judged, plan = judge_sweep(request.spec, environment)
    problems += independent([place(problem, "/spec") for problem in judged], problems)
    if problems or plan is None:
        refuse(problems)
    return _submission(request, body, plan)


def refuse(problems: list[FieldProblem]) -> NoReturn:
    """Raise the 422 of these problems."""
    count = len(problems)
    detail = f"{count} thing{'s are' if count > 1 else ' is'} wrong: " + "; ".join(
        f"{problem.pointer or '/'}: {problem.detail}" for problem in problems
    )
    raise Problem(422, "spec_invalid", detail, errors=problems)


def _judge_pretrain(spec: PretrainSpec, environment: Environment) -> tuple[list[SpecProblem], PlanView | None]:
    problems = [*spec_problems(spec), *environment_problems(spec, environment)]
    if any(problem.pointer in ("/data/dataset", "/batch_size") for problem in problems):
        return problems, None
    rate = environment.images_per_second(spec)
    plan = plan_pretrain(spec, num_images=environment.num_images(spec), images_per_second=rate)
    return [*problems, *budget_problems(plan, spec.limits.max_images)], plan


def _submission(request: PretrainSubmission | SweepSubmission, body: Mapping[str, Any], plan: PlanView) -> Submission:
    spec = request.spec
    return Submission(
        name=request.name,
        kind=request.kind,
        labels=request.labels,
        priority=request.priority,
        request=body["spec"],
        spec=spec.resolved() if isinstance(spec, PretrainSpec) else resolve(spec),
        spec_digest=spec.digest() if isinstance(spec, PretrainSpec) else _sweep_digest(spec),
        plan=plan,
        max_attempts=spec.limits.max_attempts,
        wall_time_s=spec.limits.wall_time_s,
    )


def _sweep_digest(sweep: SweepSpec) -> str:
    """Return the sha256 of all that decides a sweep's result: `limits` do not."""
    document = {key: value for key, value in resolve(sweep).items() if key != "limits"}
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
