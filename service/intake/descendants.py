"""Clone and continue: the body of a new experiment, made from what another was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.edge.problems import Problem
from service.errors import BlobsUnavailable
from service.experiment import ACTIVE
from service.intake.submission import refuse
from service.ports import ExperimentRecord
from service.schemas import CloneRequest, ContinueRequest, FieldProblem
from trainer.context import PRETRAIN_TRIAL_ID, trial_key
from trainer.storage import Storage
from tune_spaces.continuation import continued_request
from tune_spaces.overrides import apply_overrides
from tune_spaces.problems.fields import escaped, pointer_of

__all__ = [
    "body_of_clone",
    "body_of_continuation",
    "parent_of_clone",
    "parent_of_continuation",
    "placed_in_clone",
    "placed_in_continuation",
]

_OF_LENGTH = ("/spec/num_samples", "/spec/limits/max_trials", "/spec/limits/max_images")  # a continuation decides them


def body_of_clone(parent: ExperimentRecord, request: CloneRequest) -> dict[str, Any]:
    """Return the body that would have asked for the clone.

    Raises:
        Problem: 422 for a path that runs through something that is no object.
    """
    spec: Mapping[str, Any] = parent.request
    wrong: list[FieldProblem] = []
    for path, value in request.overrides.items():
        try:
            spec = apply_overrides(spec, {path: value})
        except KeyError:
            detail = f"{path}: it runs through a value that has no fields"
            wrong.append(FieldProblem(pointer=_of_override(path), code="path_unknown", detail=detail))
    if wrong:
        refuse(wrong)
    return _body(parent, spec, name=request.name)


def body_of_continuation(parent: ExperimentRecord, request: ContinueRequest, *, blobs: Storage) -> dict[str, Any]:
    """Return the body of `parent` with more epochs or trials; reads storage.

    Raises:
        Problem: 409 while the parent is active or if it left no checkpoint; 422 if there is nothing more to do.
        BlobsUnavailable: If storage does not answer.
    """
    if parent.state in ACTIVE:
        detail = f"the experiment is {parent.state}; continue it when it has ended or is paused"
        raise Problem(409, "experiment_active", detail, state=parent.state.value, allowed=["cancel", "pause"])
    field, other = ("epochs", "max_trials") if parent.kind == "pretrain" else ("max_trials", "epochs")
    value = getattr(request, field)
    if value is None or getattr(request, other) is not None:
        detail = f"a {parent.kind} is continued with {field} alone"
        refuse([FieldProblem(pointer=f"/{field}", code="missing", detail=detail, allowed=f"{{{field!r}: number}}")])
    spec = _longer(parent, value) if parent.kind == "pretrain" else _wider(parent, value)
    if parent.kind == "pretrain":  # a sweep's trials each start from their namesake, or from the start
        _require_checkpoint(parent, blobs, epochs=value)
    return _body(parent, spec, name=None)


def _require_checkpoint(parent: ExperimentRecord, blobs: Storage, *, epochs: int) -> None:
    try:
        checkpoints = blobs.list(trial_key(parent.id, PRETRAIN_TRIAL_ID, "checkpoints/manifest-"))
    except OSError as error:
        raise BlobsUnavailable("storage does not answer") from error
    if checkpoints:
        return
    link = parent.parent or {}
    origin = f"continue {link['experiment_id']}, from which it came, or " if link.get("relation") == "continue" else ""
    detail = (
        f"experiment {parent.id} ({parent.state}) left no checkpoint to continue from; {origin}clone it with "
        f'{{"overrides": {{"epochs": {epochs}}}}} to train from the start'
    )
    raise Problem(409, "checkpoint_missing", detail, state=parent.state.value, allowed=["clone"])


def _longer(parent: ExperimentRecord, epochs: int) -> dict[str, Any]:
    done = parent.spec["epochs"]
    if epochs <= done:
        detail = f"epochs = {epochs}: the experiment has {done} already, and epochs counts from its start"
        refuse([FieldProblem(pointer="/epochs", code="nothing_to_continue", detail=detail, allowed=f"> {done}")])
    return apply_overrides(parent.request, {"epochs": epochs})


def _wider(parent: ExperimentRecord, max_trials: int) -> dict[str, Any]:
    try:
        spec = continued_request(parent.request, max_trials=max_trials, seeds=parent.spec["seeds"])
    except ValueError as error:
        refuse([FieldProblem(pointer="/max_trials", code="grid_complete", detail=f"max_trials: {error}")])
    done, seeds = int(parent.plan["trials"]), len(parent.spec["seeds"])
    least = done + seeds  # a point is tried under every seed
    if max_trials < least:
        detail = f"max_trials = {max_trials}: the sweep has {done} already, and a further point takes {seeds} more"
        refuse([FieldProblem(pointer="/max_trials", code="nothing_to_continue", detail=detail, allowed=f">= {least}")])
    return spec


def parent_of_clone(parent: ExperimentRecord) -> dict[str, Any]:
    """Return the link that a clone keeps."""
    return {"experiment_id": parent.id, "relation": "clone"}


def parent_of_continuation(parent: ExperimentRecord) -> dict[str, Any]:
    """Return the link by which a continuation finds the checkpoint it starts from; a sweep has one in each trial."""
    trial = {"trial_id": PRETRAIN_TRIAL_ID} if parent.kind == "pretrain" else {}
    return {"experiment_id": parent.id, "relation": "continue", **trial}


def placed_in_clone(problem: Problem, request: CloneRequest) -> Problem:
    """Return a refusal of the whole body with its pointers where the clone's client wrote the values."""
    return _placed(problem, {"/spec" + pointer_of(path): _of_override(path) for path in request.overrides})


def placed_in_continuation(problem: Problem, parent: ExperimentRecord) -> Problem:
    """Return a refusal of the whole body with its pointers at the number that the continuation's client wrote."""
    field = "/epochs" if parent.kind == "pretrain" else "/max_trials"
    return _placed(problem, dict.fromkeys((f"/spec{field}", *_OF_LENGTH), field))


def _placed(problem: Problem, places: Mapping[str, str]) -> Problem:
    errors = [
        error.model_copy(update={"pointer": places.get(error.pointer, error.pointer)}) for error in problem.errors
    ]
    return Problem(problem.status, problem.code, problem.detail, errors=errors, **problem.members)


def _of_override(path: str) -> str:
    return f"/overrides/{escaped(path)}"


def _body(parent: ExperimentRecord, spec: Mapping[str, Any], *, name: str | None) -> dict[str, Any]:
    return {
        "name": name or parent.name,
        "kind": parent.kind,
        "labels": dict(parent.labels),
        "priority": parent.priority,
        "spec": dict(spec),
    }
