"""Each operation of the API as a value; the clients differ only in how they send it."""

# ruff: noqa: D103 - each function is the route it names; the clients' methods say what comes back

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

from service.client.documents import (
    Attempt,
    Comparison,
    Dataset,
    Encoder,
    Experiment,
    Logs,
    Metrics,
    NewToken,
    Page,
    Study,
    Token,
    Trial,
    Validation,
    Version,
)

__all__ = [
    "Call",
    "artifacts",
    "clone",
    "compare",
    "continue_",
    "create_token",
    "dataset",
    "datasets",
    "delete",
    "encoder_path",
    "encoders",
    "events_path",
    "experiment",
    "experiments",
    "logs",
    "metrics",
    "report",
    "revoke_token",
    "studies",
    "study",
    "submit",
    "timeline",
    "tokens",
    "trial",
    "trials",
    "update",
    "validate",
    "verb",
    "version",
]

Document = TypeVar("Document")


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Document]):
    """A request whose answer is a `Document`."""

    method: str
    path: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_repeatable: bool = True  # sending it twice does what sending it once does
    is_removal: bool = False  # afterwards there is nothing at its path


def _get(path: str, **params: str | int | None) -> Call[Any]:
    return Call(method="GET", path=path, params={name: value for name, value in params.items() if value is not None})


def _create(path: str, body: Any, *, idempotency_key: str | None) -> Call[Any]:
    key = idempotency_key or secrets.token_urlsafe(24)
    return Call(method="POST", path=path, body=body, headers={"Idempotency-Key": key})


def _experiment_path(experiment_id: str, *rest: str) -> str:
    return "/".join(("/experiments", quote(experiment_id, safe=""), *(quote(part, safe="/") for part in rest)))


def submit(document: Mapping[str, Any], *, idempotency_key: str | None) -> Call[Experiment]:
    return _create("/experiments", dict(document), idempotency_key=idempotency_key)


def validate(document: Mapping[str, Any]) -> Call[Validation]:
    return Call(method="POST", path="/experiments", params={"validate_only": "true"}, body=dict(document))


def experiment(experiment_id: str) -> Call[Experiment]:
    return _get(_experiment_path(experiment_id))


def experiments(
    *,
    state: str | None,
    kind: str | None,
    label: str | None,
    name: str | None,
    order_by: str | None,
    page_size: int | None,
    page_token: str | None,
) -> Call[Page[Experiment]]:
    return _get(
        "/experiments",
        state=state,
        kind=kind,
        label=label,
        name=name,
        order_by=order_by,
        page_size=page_size,
        page_token=page_token,
    )


def verb(experiment_id: str, word: Literal["cancel", "pause", "resume"]) -> Call[Experiment]:
    return Call(method="POST", path=_experiment_path(experiment_id, word))


def clone(
    experiment_id: str, *, name: str | None, overrides: Mapping[str, Any], idempotency_key: str | None
) -> Call[Experiment]:
    body = {"overrides": dict(overrides)} | ({"name": name} if name is not None else {})
    return _create(_experiment_path(experiment_id, "clone"), body, idempotency_key=idempotency_key)


def continue_(
    experiment_id: str, *, epochs: int | None, max_trials: int | None, idempotency_key: str | None
) -> Call[Experiment]:
    amounts = {"epochs": epochs, "max_trials": max_trials}
    body = {name: amount for name, amount in amounts.items() if amount is not None}
    return _create(_experiment_path(experiment_id, "continue"), body, idempotency_key=idempotency_key)


def update(
    experiment_id: str, *, labels: Mapping[str, str] | None, priority: int | None, etag: str
) -> Call[Experiment]:
    body: dict[str, Any] = {}
    if labels is not None:
        body["labels"] = dict(labels)
    if priority is not None:
        body["priority"] = priority
    path = _experiment_path(experiment_id)
    return Call(method="PATCH", path=path, body=body, headers={"If-Match": etag}, is_repeatable=etag == "*")


def delete(experiment_id: str, *, force: bool) -> Call[None]:
    params = {"force": "true"} if force else {}
    return Call(method="DELETE", path=_experiment_path(experiment_id), params=params, is_removal=True)


def trials(experiment_id: str, *, page_token: str | None = None) -> Call[Page[Trial]]:
    return _get(_experiment_path(experiment_id, "trials"), page_token=page_token)


def trial(experiment_id: str, trial_id: str) -> Call[Trial]:
    return _get(_experiment_path(experiment_id, "trials", trial_id))


def metrics(experiment_id: str, *, keys: Sequence[str], trial: str | None, max_points: int | None) -> Call[Metrics]:
    path = _experiment_path(experiment_id, "metrics")
    return _get(path, keys=",".join(keys) or None, trial=trial, max_points=max_points)


def logs(experiment_id: str, *, tail: int | None) -> Call[Logs]:
    return _get(_experiment_path(experiment_id, "logs"), tail=tail)


def artifacts(experiment_id: str) -> Call[Page[dict[str, Any]]]:
    return _get(_experiment_path(experiment_id, "artifacts"))


def timeline(experiment_id: str) -> Call[Page[Attempt]]:
    return _get(_experiment_path(experiment_id, "timeline"))


def report(experiment_id: str) -> Call[dict[str, Any]]:
    return _get(_experiment_path(experiment_id, "report"), format="json")


def encoder_path(experiment_id: str) -> str:
    return _experiment_path(experiment_id, "encoder")


def events_path(experiment_id: str) -> str:
    return _experiment_path(experiment_id, "events")


def compare(experiment_ids: Sequence[str]) -> Call[Comparison]:
    return _get("/compare", ids=",".join(experiment_ids))


def studies(*, page_token: str | None = None) -> Call[Page[Study]]:
    return _get("/studies", page_token=page_token)


def study(name: str) -> Call[Study]:
    return _get(f"/studies/{quote(name, safe='')}")


def datasets(*, page_token: str | None = None) -> Call[Page[Dataset]]:
    return _get("/datasets", page_token=page_token)


def dataset(name: str) -> Call[Dataset]:
    return _get(f"/datasets/{quote(name, safe='')}")


def encoders(*, page_token: str | None = None) -> Call[Page[Encoder]]:
    return _get("/encoders", page_token=page_token)


def tokens(*, page_token: str | None = None) -> Call[Page[Token]]:
    return _get("/tokens", page_token=page_token)


def create_token(*, name: str, role: str, owner: str | None, expires_at: str | None) -> Call[NewToken]:
    members = {"name": name, "role": role, "owner": owner, "expires_at": expires_at}
    body = {key: value for key, value in members.items() if value is not None}
    return Call(method="POST", path="/tokens", body=body, is_repeatable=False)


def revoke_token(token_id: str) -> Call[None]:
    return Call(method="DELETE", path=f"/tokens/{quote(token_id, safe='')}")


def version() -> Call[Version]:
    return _get("/version")
