"""What the service needs from the outside, as protocols with their contracts in prose.

Adapters: `store.SqlStore`, `cluster.RayJobs`, `tracking.MlflowTracking`; `trainer.storage` for blobs.
Only `app` builds them. Each protocol has one conformance suite that every implementation passes.
All times are aware UTC datetimes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

from service.experiment import State

__all__ = [
    "EVENTS_AT_ONCE",
    "Capacity",
    "Cluster",
    "Event",
    "ExperimentRecord",
    "Idempotency",
    "JobObservation",
    "JobStatus",
    "ListQuery",
    "MetricPoint",
    "NewExperiment",
    "Page",
    "Role",
    "Store",
    "TokenRecord",
    "Tracking",
    "TrialRun",
]

EVENTS_AT_ONCE: Final = 1000  # of one reading of the story; who gets so many asks for more

JsonObject = dict[str, Any]

# --- the database -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NewExperiment:
    """What a client submitted, checked and resolved."""

    id: str
    name: str
    kind: Literal["pretrain", "sweep"]
    owner: str
    labels: Mapping[str, str]
    priority: int
    request: JsonObject  # the spec as asked, for clone and continue
    spec: JsonObject  # resolved, as it will run
    spec_digest: str
    plan: JsonObject
    max_attempts: int
    wall_time_s: int
    parent: JsonObject | None = None  # {"experiment_id", "relation": "clone" | "continue", ...}


@dataclass(frozen=True, kw_only=True)
class ExperimentRecord(NewExperiment):
    """An experiment as stored."""

    state: State
    reason: JsonObject | None  # {"code", "message", ...}
    conditions: Sequence[JsonObject]  # [{"type", "status", "message", "at"}]
    attempt: int  # 0 before the first start
    failures: int  # infrastructure failures so far; bounded by max_attempts
    version: int  # counts changes of stored fields that a client sees in the ETag
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    not_before: datetime | None  # backoff: not to be started earlier
    claim: str | None  # which dispatcher holds it
    claimed_until: datetime | None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of an experiment's story; `sequence` is global, ascending, never reused."""

    sequence: int
    experiment_id: str
    type: Literal["state", "trial", "condition"]
    data: JsonObject
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """A client's key, scoped to caller and route, with the digest of the body it came with."""

    owner: str
    route: str
    key: str
    body_sha256: str


@dataclass(frozen=True, kw_only=True)
class ListQuery:
    """A page of experiments: filters are conjunctive; `after` is the last item of the page before."""

    owner: str | None = None  # None: all owners
    states: Sequence[State] = ()
    kind: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    order_by: Literal["created_at", "-created_at", "name", "-name", "priority", "-priority"] = "-created_at"
    page_size: int = 50
    after: tuple[Any, str] | None = None  # (order value, id)


@dataclass(frozen=True, kw_only=True)
class Page:
    """Items of one page and the position behind the last, None at the end."""

    items: Sequence[ExperimentRecord]
    next_after: tuple[Any, str] | None


class Role(StrEnum):
    """What a token may do; each includes the ones before."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """A stored token; the secret itself is never stored."""

    id: str
    name: str
    owner: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class Store(Protocol):
    """Experiments, events, idempotency keys and tokens, in one database.

    Every method is one transaction. Raises `StoreUnavailable` when the database cannot be
    reached; see `service.errors` for the rest.
    """

    async def ping(self) -> None:
        """Return when the database answers."""

    async def create(self, new: NewExperiment, idempotency: Idempotency | None) -> tuple[ExperimentRecord, bool]:
        """Store `new` as `queued` with its first event and, in the same transaction, the key.

        Returns the experiment and whether it is a replay of an earlier request with that key.
        Of 50 at once with one key one creates and 49 replay. Raises IdempotencyConflict where
        the key came with another body.
        """

    async def find_idempotent(self, idempotency: Idempotency) -> ExperimentRecord | None:
        """Return what this key made; None if new. Raises IdempotencyConflict for another body."""

    async def get(self, experiment_id: str) -> ExperimentRecord:
        """Return one. Raises ExperimentNotFound."""

    async def list(self, query: ListQuery) -> Page:
        """Return a keyset page.

        Its cost does not grow with the number stored under any one filter and with an owner beside
        it, in every order. Of several filters one is walked along (a label, if one is asked for),
        and the others pass over what it comes by.
        """

    async def count_by_state(self) -> Mapping[State, int]:
        """Return how many experiments are in each state."""

    async def update(
        self,
        experiment_id: str,
        *,
        expected_version: int | None,
        labels: Mapping[str, str] | None,
        priority: int | None,
    ) -> ExperimentRecord:
        """Change what a client may change. Raises StaleVersion, ExperimentNotFound."""

    async def transition(
        self,
        experiment_id: str,
        *,
        source: State,
        target: State,
        claim: str | None = None,
        reason: JsonObject | None = None,
        attempt: int | None = None,
        failures: int | None = None,
        not_before: datetime | None = None,
    ) -> ExperimentRecord:
        """Move from `source` to `target` and write the event, in one transaction.

        Fenced: where the row is no longer in `source`, or `claim` is given and another
        dispatcher holds an unexpired claim, nothing is written and StaleState is raised. Sets
        started_at on the first `running`, finished_at on a terminal state. `reason` and
        `not_before` belong to the new state: left out, the old ones are cleared. `attempt` and
        `failures` left out keep theirs. The event's data: {"state", "previous", "reason",
        "attempt"}. A move that the table does not have raises IllegalTransition.
        """

    async def set_condition(self, experiment_id: str, condition: JsonObject) -> None:
        """Add or replace the condition of this type; writes an event only where it changed."""

    async def delete(self, experiment_id: str) -> None:
        """Remove a terminal or paused experiment with its events and keys. Raises StaleState otherwise."""

    async def claim_due(
        self, claim: str, *, now: datetime, lease_s: float, with_queue_of_others: bool = False
    ) -> Sequence[ExperimentRecord]:
        """Claim for `lease_s` and return every ACTIVE experiment that no other dispatcher holds.

        What the caller holds already is claimed anew once half of its lease is over.
        Of a long queue only the head: the first 64 of each owner. Those that wait (`not_before`)
        are among them; when to start one is the caller's business. `with_queue_of_others`: beside
        it what others hold of that head, told apart by `claim`. Ordered by priority (high
        first), then age. A row that cannot be read is left out and logged; it never hides the others.
        """

    async def append_event(self, experiment_id: str, type_: Literal["trial", "condition"], data: JsonObject) -> Event:
        """Append to the story; unknown experiment: ExperimentNotFound."""

    async def events(
        self, *, after: int, experiment_id: str | None = None, limit: int = EVENTS_AT_ONCE
    ) -> Sequence[Event]:
        """Return events with a sequence above `after`, ascending."""

    async def newest_sequence(self) -> int:
        """Return the sequence of the newest event ever, 0 before the first."""

    async def create_token(self, token: TokenRecord, secret_sha256: str) -> None:
        """Store a token under the digest of its secret."""

    async def find_token(self, secret_sha256: str) -> TokenRecord | None:
        """Return the token of this secret, revoked and expired ones included."""

    async def list_tokens(self) -> Sequence[TokenRecord]:
        """Return all tokens, newest first."""

    async def revoke_token(self, token_id: str) -> None:
        """Mark it revoked; repeating is no error. Raises TokenNotFound."""

    async def tidy(self) -> None:
        """Give back the space of what was deleted. Raises StoreUnavailable."""

    async def close(self) -> None:
        """Release connections."""


# --- the cluster --------------------------------------------------------------------------------


class JobStatus(StrEnum):
    """How Ray sees a job; `missing` where it has never heard of it (or lost its memory)."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    MISSING = "missing"

    @property
    def is_living(self) -> bool:
        """Return whether the job holds, or is about to hold, a part of the cluster."""
        return self in (JobStatus.PENDING, JobStatus.RUNNING)


@dataclass(frozen=True, kw_only=True)
class JobObservation:
    """What the cluster says of one attempt."""

    status: JobStatus
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What the cluster has in all and has free now."""

    cpus_total: float
    cpus_free: float
    gpus_total: float
    gpus_free: float
    nodes: int


class Cluster(Protocol):
    """Jobs by deterministic id. Raises ClusterUnavailable when it cannot be reached."""

    async def ping(self) -> None:
        """Return when the cluster answers."""

    async def submit(
        self, submission_id: str, *, entrypoint: str, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Start a job; an id that exists already is success (a submit lost or repeated)."""

    async def observe(self, submission_id: str) -> JobObservation:
        """Return the job's status; MISSING is an answer, not an error."""

    async def stop(self, submission_id: str) -> None:
        """Ask the job to end (SIGINT, then SIGKILL after its grace); no error where it has ended."""

    async def logs(self, submission_id: str) -> str:
        """Return the driver's log as far as the cluster has it; empty where it is lost."""

    async def capacity(self) -> Capacity:
        """Return the cluster's resources."""

    async def close(self) -> None:
        """Release connections."""


# --- the records of runs ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """A trial's MLflow run as read: last values of its metrics, flat params, tags."""

    trial_id: str
    mlflow_run_id: str
    status: str  # MLflow's: RUNNING, FINISHED, FAILED, KILLED
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    steps: Mapping[str, int]  # of these values
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class MetricPoint:
    """One point of a metric; `step` is the global step."""

    step: int
    value: float
    at: datetime


class Tracking(Protocol):
    """MLflow, read only but for `close_runs`. Raises TrackingUnavailable when it cannot be reached.

    Runs are found by tag: `simclr.experiment_id`, `simclr.trial_id` (on trials), and
    `mlflow.parentRunId` ties a trial to its experiment's parent run.
    """

    async def ping(self) -> None:
        """Return when MLflow answers."""

    async def trials(self, experiment_id: str) -> Sequence[TrialRun]:
        """Return the runs of an experiment's trials, by trial id; [] before the first exists."""

    async def metrics(self, mlflow_run_id: str, keys: Sequence[str]) -> Mapping[str, Sequence[MetricPoint]]:
        """Return every point of each key, ascending by step, each step once; [] for an unknown key."""

    async def artifacts(self, mlflow_run_id: str, path: str = "") -> Sequence[JsonObject]:
        """Return {"path", "is_dir", "size_bytes"} of one artifact folder."""

    def open_artifact(self, mlflow_run_id: str, path: str) -> AsyncIterator[bytes]:
        """Stream one artifact. Raises ArtifactNotFound."""

    async def close_runs(self, experiment_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Set the end state of the parent run and of every trial run that is still RUNNING.

        Repeating with another state corrects the parent, and the trials that it was given to with it.
        """

    def run_url(self, experiment_id: str, mlflow_run_id: str | None) -> str | None:
        """Return the address of the run's page for a person, if there is one."""

    async def close(self) -> None:
        """Release connections."""
