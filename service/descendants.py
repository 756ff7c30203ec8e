"""Clone and continue: the body of a new experiment, made from what another was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.dotted_paths import pointer_of, with_override
from service.experiment import ACTIVE
from service.ports import ExperimentRecord
from service.problems import Problem
from service.schemas import CloneRequest, ContinueRequest, FieldProblem
from service.submission import refuse
from trainer.context import PRETRAIN_TRIAL_ID

__all__ = ["body_of_clone", "body_of_continuation", "moved_to_overrides", "parent_of_clone", "parent_of_continuation"]


def body_of_clone(parent: ExperimentRecord, request: CloneRequest) -> dict[str, Any]:
    """Return the body that would have asked for the clone.

    Raises:
        Problem: 422 for a path that runs through something that is no object.
    """
    spec: Mapping[str, Any] = parent.request
    wrong: list[FieldProblem] = []
    for path, value in request.overrides.items():
        try:
            spec = with_override(spec, path, value)
        except KeyError:
            detail = f"{path}: it runs through a value that has no fields"
            wrong.append(FieldProblem(pointer=f"/overrides/{path}", code="path_unknown", detail=detail))
    if wrong:
        refuse(wrong)
    return _body(parent, spec, name=request.name)


def body_of_continuation(parent: ExperimentRecord, request: ContinueRequest) -> dict[str, Any]:
    """Return the body of `parent` with more epochs or trials.

    Raises:
        Problem: 409 while the parent is active; 422 if there is nothing more to do.
    """
    if parent.state in ACTIVE:
        detail = f"the experiment is {parent.state}; continue it when it has ended or is paused"
        raise Problem(409, "experiment_active", detail, state=parent.state.value, allowed=["cancel", "pause"])
    field, path = ("epochs", "epochs") if parent.kind == "pretrain" else ("max_trials", "limits.max_trials")
    other = "max_trials" if field == "epochs" else "epochs"
    value = getattr(request, field)
    if value is None or getattr(request, other) is not None:
        detail = f"a {parent.kind} is continued with {field} alone"
        refuse([FieldProblem(pointer=f"/{field}", code="missing", detail=detail, allowed=f"{{{field!r}: number}}")])
    done = parent.spec["epochs"] if field == "epochs" else int(parent.plan["trials"])
    if value <= done:
        detail = f"{field} = {value}: the experiment has {done} already; {field} counts from its start"
        refuse([FieldProblem(pointer=f"/{field}", code="nothing_to_continue", detail=detail, allowed=f"> {done}")])
    spec = with_override(parent.request, path, value)
    if parent.spec.get("search") in ("random", "optuna"):  # what these draw, their samples say; a grid is what it is
        spec["num_samples"] = value // len(parent.spec["seeds"])
    return _body(parent, spec, name=None)


def parent_of_clone(parent: ExperimentRecord) -> dict[str, Any]:
    """Return the link that a clone keeps."""
    return {"experiment_id": parent.id, "relation": "clone"}


def parent_of_continuation(parent: ExperimentRecord) -> dict[str, Any]:
    """Return the link by which a continuation finds the checkpoint it starts from."""
    trial = {"trial_id": PRETRAIN_TRIAL_ID} if parent.kind == "pretrain" else {}
    return {"experiment_id": parent.id, "relation": "continue", **trial}


def moved_to_overrides(problem: Problem, paths: Mapping[str, Any]) -> Problem:
    """Return a refusal of the whole body with its pointers where the clone's client wrote the values."""
    places = {"/spec" + pointer_of(path): f"/overrides/{path}" for path in paths}

    def moved(error: FieldProblem) -> FieldProblem:
        place = next((new for old, new in places.items() if error.pointer == old), error.pointer)
        return error.model_copy(update={"pointer": place})

    return Problem(problem.status, problem.code, problem.detail, errors=[moved(error) for error in problem.errors])


def _body(parent: ExperimentRecord, spec: Mapping[str, Any], *, name: str | None) -> dict[str, Any]:
    return {
        "name": name or parent.name,
        "kind": parent.kind,
        "labels": dict(parent.labels),
        "priority": parent.priority,
        "spec": dict(spec),
    }
