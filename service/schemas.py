"""The documents of the HTTP contract: what clients send and what they get.

Requests forbid unknown keys and never coerce; responses spell out every member.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from service.experiment import State, TrialState
from service.ports import Role
from trainer.spec import MAX_EPOCHS, PretrainSpec
from tune_spaces.spec import MAX_TRIALS, SweepSpec

__all__ = [
    "NO_NUL",
    "ArtifactView",
    "AttemptTimeline",
    "BestTrial",
    "CloneRequest",
    "Comparison",
    "ComponentStatus",
    "Condition",
    "ContinueRequest",
    "DatasetView",
    "EncoderView",
    "ExperimentPatch",
    "ExperimentView",
    "FieldProblem",
    "Items",
    "LogView",
    "MetricsView",
    "PlanView",
    "PointView",
    "PretrainSubmission",
    "Progress",
    "Readiness",
    "StudyView",
    "SweepSubmission",
    "TimelinePhase",
    "TokenCreated",
    "TokenRequest",
    "TokenView",
    "TrialView",
    "ValidationView",
    "VersionView",
]

Item = TypeVar("Item")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("not_printable", "no control, direction or other invisible characters")
    return text


def _rfc3339(value: object) -> object:
    if not isinstance(value, str) or "T" not in value.upper():  # pydantic would take seconds since 1970 as well
        raise PydanticCustomError("not_a_time", "a time as RFC 3339 writes it, such as 2030-01-31T12:00:00Z")
    return value


def _utc(time: datetime) -> datetime:
    try:
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    except OverflowError:
        pass
    raise PydanticCustomError("not_a_time", "a time with its zone, of the years 1 to 9999 in UTC")


NO_NUL: Final = r"^[^\x00]*$"  # the one character that PostgreSQL's text has no place for
Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
LabelKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,63}$")]
LabelValue = Annotated[str, Field(max_length=255), AfterValidator(_printable)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
Priority = Annotated[int, Field(ge=-1000, le=1000)]
Instant = Annotated[datetime, Field(strict=False), BeforeValidator(_rfc3339), AfterValidator(_utc)]


# --- requests -------------------------------------------------------------------------------------


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Submission(_Request):
    name: Name
    labels: Labels = {}
    priority: Priority = 0


class PretrainSubmission(_Submission):
    """One pretraining."""

    kind: Literal["pretrain"]
    spec: PretrainSpec


class SweepSubmission(_Submission):
    """A sweep: many pretrainings of one base spec."""

    kind: Literal["sweep"]
    spec: SweepSpec


class ExperimentPatch(_Request):
    """What may change after submission; what is left out stays."""

    labels: Labels | None = None
    priority: Priority | None = None


class CloneRequest(_Request):
    """A new experiment like another, with some of its spec replaced."""

    name: Name | None = None
    overrides: dict[str, Any] = Field(default={}, max_length=256)  # dotted path into the spec -> value


class ContinueRequest(_Request):
    """More of the same: a pretraining to `epochs` in all, or a sweep to `max_trials` in all."""

    epochs: int | None = Field(None, ge=2, le=MAX_EPOCHS)
    max_trials: int | None = Field(None, ge=2, le=MAX_TRIALS)


class TokenRequest(_Request):
    """A token to be made."""

    name: Name
    role: Role = Field(Role.SUBMITTER, strict=False)
    owner: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")] | None = None  # None: the token's id
    expires_at: Instant | None = None


# --- responses ------------------------------------------------------------------------------------


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)


class Items(_View, Generic[Item]):
    """One page of a list; `next_page_token` is empty on the last."""

    items: list[Item]
    next_page_token: str = ""


class FieldProblem(_View):
    """One thing that is wrong, where, what is allowed and how to mend it."""

    pointer: str
    code: str
    detail: str
    allowed: Any = None


class PlanView(_View):
    """What a spec will compute, known before it runs."""

    trials: int
    steps: int  # optimiser steps over all trials
    images: int  # images seen over all trials, each epoch counted
    steps_per_epoch: int | None  # null where trials differ
    images_dropped_per_epoch: int | None  # left over by whole global batches
    negatives_per_anchor: int | None  # 2(N - 1)
    memory_bytes: int | None  # per worker, estimated; of the trial that needs most
    trials_at_once: int | None  # as many as fit the cluster and were allowed; null where it does not answer
    time_s: Annotated[
        float | None,
        Field(
            description="Of the training alone: `images` over the median of `images_per_second` that the newest "
            "pretrainings here reached with the same encoder, image size, workers and kind of device; of a sweep as "
            "many at a time as `trials_at_once`, and at most so long where trials may be stopped early. Null where "
            "there were none for one of its trials."
        ),
    ]
    warnings: list[str]


class ValidationView(_View):
    """What would run."""

    name: str
    kind: Literal["pretrain", "sweep"]
    spec: dict[str, Any]
    spec_digest: str
    plan: PlanView


class BestTrial(_View):
    """The trial that did best by the experiment's metric."""

    trial: str
    metric: str
    value: float


class Condition(_View):
    """Something that holds beside the state; it does not stop the experiment."""

    type: str
    status: str
    message: str = ""
    at: datetime | None = None


class Progress(_View):
    """How far it is; null where it is not known (yet)."""

    trials_done: int
    trials_total: int
    epoch: float | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    images_per_second: float | None = None
    eta_s: float | None = None


class ExperimentView(_View):
    """An experiment: what was asked, where it stands and what came out."""

    id: str
    name: str
    kind: Literal["pretrain", "sweep"]
    owner: str
    labels: Mapping[str, str]
    priority: int
    parent: dict[str, Any] | None
    state: State
    reason: dict[str, Any] | None
    conditions: list[Condition]
    spec: dict[str, Any]
    spec_digest: str
    plan: dict[str, Any]
    progress: Progress
    best: BestTrial | None
    attempt: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: dict[str, str | None]


class TrialView(_View):
    """One hyperparameter assignment of an experiment."""

    id: str
    state: TrialState
    params: dict[str, Any]  # flat: dotted path -> scalar
    metrics: dict[str, float | None]  # last values
    best: dict[str, Any] | None = None
    attempt: int | None = None
    mlflow_run_id: str | None = None
    reason: dict[str, Any] | None = None  # {"code", "message", ...}: it failed, or a limit ended it or left it out


class PointView(_View):
    """One point of a metric."""

    step: int
    value: float | None
    at: datetime


class MetricsView(_View):
    """The points of one trial, by metric."""

    trial: str | None
    series: dict[str, list[PointView]]


class LogView(_View):
    """The end of a driver's log."""

    attempt: int
    lines: list[str]


class ArtifactView(_View):
    """One file or folder of a trial's run."""

    path: str
    is_dir: bool
    size_bytes: int | None


class TimelinePhase(_View):
    """A part of an attempt."""

    name: str
    began_at: datetime
    duration_s: float | None  # null while it lasts


class AttemptTimeline(_View):
    """When each part of one attempt began and how long it took."""

    attempt: int
    phases: list[TimelinePhase]


class Comparison(_View):
    """Experiments side by side."""

    items: list[dict[str, Any]]
    differences: dict[str, dict[str, Any]]  # dotted path into the spec -> experiment id -> value
    next_page_token: str = ""


class StudyView(_View):
    """A named sweep of the catalogue."""

    model_config = ConfigDict(extra="allow")

    name: str
    description: str


class DatasetView(_View):
    """A registered data set."""

    model_config = ConfigDict(extra="allow")

    name: str
    description: str
    num_train: int | None = None
    num_test: int | None = None
    num_classes: int | None = None
    has_labels: bool | None = None


class EncoderView(_View):
    """An encoder that can be downloaded."""

    experiment_id: str
    experiment_name: str
    trial: str
    metric: str | None
    value: float | None
    finished_at: datetime | None
    href: str


class TokenView(_View):
    """A token, without its secret."""

    id: str
    name: str
    owner: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class TokenCreated(TokenView):
    """A new token; `token` is the secret and is never shown again."""

    token: str


class ComponentStatus(_View):
    """Whether one thing the service rests on answers."""

    name: Literal["database", "ray", "mlflow"]
    is_ready: bool


class Readiness(_View):
    """Whether the service can do all its work."""

    status: Literal["ready", "not_ready"]
    components: list[ComponentStatus]


class VersionView(_View):
    """Which versions answer."""

    service: str
    api: str
    python: str
