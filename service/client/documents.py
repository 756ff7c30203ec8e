"""The documents that the client returns: plain dictionaries, typed as the contract names them.

A service may add members; they are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar

from service.experiment import State, TrialState

__all__ = [
    "Attempt",
    "Best",
    "Comparison",
    "Dataset",
    "Encoder",
    "Event",
    "Experiment",
    "Logs",
    "Metrics",
    "NewToken",
    "Page",
    "Phase",
    "Point",
    "Progress",
    "Study",
    "Token",
    "Trial",
    "Validation",
    "Version",
]

Item = TypeVar("Item")


class Page(TypedDict, Generic[Item]):
    """One page of a list; the token is empty on the last."""

    items: list[Item]
    next_page_token: str


class Best(TypedDict):
    """The trial that did best."""

    trial: str
    metric: str
    value: float


class Progress(TypedDict):
    """How far an experiment is; None where it is not known."""

    trials_done: int
    trials_total: int
    epoch: float | None
    epochs: int | None
    step: int | None
    steps: int | None
    images_per_second: float | None
    eta_s: float | None


class Experiment(TypedDict):
    """What was asked, where it stands and what came out. Times are RFC 3339, UTC."""

    id: str
    name: str
    kind: Literal["pretrain", "sweep"]
    owner: str
    labels: dict[str, str]
    priority: int
    parent: dict[str, Any] | None
    state: State
    reason: dict[str, Any] | None
    conditions: list[dict[str, Any]]
    spec: dict[str, Any]
    spec_digest: str
    plan: dict[str, Any]
    progress: Progress
    best: Best | None
    attempt: int
    created_at: str
    updated_at: str
    started_at: str | None
    finished_at: str | None
    links: dict[str, str | None]


class Validation(TypedDict):
    """What would run."""

    name: str
    kind: Literal["pretrain", "sweep"]
    spec: dict[str, Any]
    spec_digest: str
    plan: dict[str, Any]


class Trial(TypedDict):
    """One hyperparameter assignment; `params` is flat, `metrics` holds last values."""

    id: str
    state: TrialState
    params: dict[str, Any]
    metrics: dict[str, float | None]
    best: dict[str, Any] | None
    attempt: int | None
    mlflow_run_id: str | None
    reason: dict[str, Any] | None


class Point(TypedDict):
    """One point of a metric, by global step."""

    step: int
    value: float | None
    at: str


class Metrics(TypedDict):
    """The points of one trial, by metric."""

    trial: str | None
    series: dict[str, list[Point]]


class Logs(TypedDict):
    """The end of a driver's log."""

    attempt: int
    lines: list[str]


class Phase(TypedDict):
    """A part of an attempt; no duration while it lasts."""

    name: str
    began_at: str
    duration_s: float | None


class Attempt(TypedDict):
    """When each part of one attempt began and how long it took."""

    attempt: int
    phases: list[Phase]


class Comparison(TypedDict):
    """Experiments side by side; `differences`: dotted path -> experiment id -> value."""

    items: list[dict[str, Any]]
    differences: dict[str, dict[str, Any]]


class Study(TypedDict):
    """A named sweep of the catalogue."""

    name: str
    description: str


class Dataset(TypedDict):
    """A registered data set."""

    name: str
    description: str


class Encoder(TypedDict):
    """An encoder that can be downloaded."""

    experiment_id: str
    experiment_name: str
    trial: str
    metric: str | None
    value: float | None
    finished_at: str | None
    href: str


class Token(TypedDict):
    """A token, without its secret."""

    id: str
    name: str
    owner: str
    role: Literal["viewer", "submitter", "admin"]
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class NewToken(Token):
    """A new token; `token` is its secret and is never shown again."""

    token: str


class Version(TypedDict):
    """Which versions answer."""

    service: str
    api: str
    python: str


@dataclass(frozen=True, kw_only=True)
class Event:
    """One server-sent event: state, trial, condition, metric, log or heartbeat."""

    type: str
    id: str  # the global sequence; what a later stream resumes behind
    data: Any
