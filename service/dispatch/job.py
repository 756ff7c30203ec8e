"""An attempt as a Ray job: its command, its environment, its metadata.

The one place where Ray, MLflow and the math libraries are tuned. Nothing a user named is in the
command but inside the document, whose word is inert to a shell, and no secret is in any of it:
Ray shows jobs to whoever may see its dashboard. Secrets reach the nodes by their own environment.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service.ports import ExperimentRecord
from service.public_address import without_userinfo
from service.settings import Settings
from trainer.context import PRETRAIN_TRIAL_ID, JobDocument, ParentTrial
from trainer.spec import ScalingSpec

__all__ = ["JOB_ENVIRONMENT", "JobRequest", "attempt_job", "backfill_job", "scaling_of"]

_MODULES: Final = {"pretrain": "trainer", "sweep": "tune_spaces"}
_BACKFILL: Final = "trainer.backfill"

# How long a team may take to get its workers, before that counts as a failure, of which it bears a few. An
# autoscaler needs minutes for a node. One that can be smaller is tried so then; another waits for whoever
# took the room that admission saw, a trial of a sweep say.
TRY_FEWER_AFTER_S: Final = 300
WAIT_FOR_ROOM_S: Final = 900

JOB_ENVIRONMENT: Final[Mapping[str, str]] = {
    # Ray Train takes one report of a worker per check; at its default of 2 s every report waits.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Its default is never: a report of which one rank died would be waited for for ever.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
    # Off by default, which leaves the dashboard's Train tab empty.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # A process of 200 MB a run that looks for nodes about to be drained: the workers of a drained
    # node end as a dead node's do, and go on from the last checkpoint.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Glibc gives large blocks back to the system and gets them again, page fault by page fault, in
    # each step: 9.4 faults a view were measured, 0.007 with these.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    # Tune would write each result as CSV, JSON and TensorBoard files that no one reads.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # SIGINT is what Ray Train ends cleanly on; 3 s, the default, is less than its clean end takes.
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": "30",
    # Both are on by default, and phone home.
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # 7 retries of 120 s by default: an absent server would hold the sender for a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    # Each line of the driver reaches its log when it is printed, not when a buffer is full.
    "PYTHONUNBUFFERED": "1",
    # The log is kept, and read in a browser: no escape sequences for a terminal.
    "RAY_COLOR_PREFIX": "0",
}

# What the operator set for the service holds for its jobs too: the interface between nodes, where
# the host name resolves to the wrong one.
_PASSED_ON: Final = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What `Cluster.submit` is given besides the id."""

    entrypoint: str
    env: Mapping[str, str]
    metadata: Mapping[str, str]


def attempt_job(
    record: ExperimentRecord, settings: Settings, *, attempt: int, environ: Mapping[str, str] = os.environ
) -> JobRequest:
    """Return the Ray job of one attempt; the same arguments give the same job."""
    return JobRequest(
        entrypoint=_entrypoint(_MODULES[record.kind], record, settings, attempt),
        env=_environment(record, environ),
        metadata={"experiment_id": record.id, "attempt": str(attempt), "kind": record.kind},
    )


def backfill_job(
    record: ExperimentRecord, settings: Settings, *, environ: Mapping[str, str] = os.environ
) -> JobRequest:
    """Return the Ray job that sends MLflow what it missed of an experiment that has ended."""
    return JobRequest(
        entrypoint=_entrypoint(_BACKFILL, record, settings, record.attempt),
        env=_environment(record, environ),
        metadata={"experiment_id": record.id, "attempt": str(record.attempt), "kind": "backfill"},
    )


def scaling_of(record: ExperimentRecord) -> ScalingSpec:
    """Return the workers that one trial of the experiment asks for."""
    base = record.spec if record.kind == "pretrain" else record.spec["base"]
    return ScalingSpec.model_validate(base.get("scaling", {}))


def _entrypoint(module: str, record: ExperimentRecord, settings: Settings, attempt: int) -> str:
    # The embedded Ray's nodes are this machine: this very interpreter. A cluster's image has its own.
    python = sys.executable if settings.cpus is not None else "python"
    return f"{shlex.quote(python)} -m {module} --document {_document(record, settings, attempt).encode()}"


def _document(record: ExperimentRecord, settings: Settings, attempt: int) -> JobDocument:
    return JobDocument(
        experiment_id=record.id,
        name=record.name,
        kind=record.kind,
        attempt=attempt,
        spec=record.spec,
        storage=settings.storage_uri,
        mlflow_uri=without_userinfo(settings.mlflow_uri) if settings.mlflow_uri else None,
        datasets_dir=settings.datasets,
        cache_dir=str(settings.cache_dir),
        parent=_parent(record),
    )


def _parent(record: ExperimentRecord) -> ParentTrial | None:
    """Return what a continued experiment starts from; a sweep's trials each from that of the same id."""
    link = record.parent or {}
    if link.get("relation") != "continue":
        return None
    return ParentTrial(experiment_id=link["experiment_id"], trial_id=link.get("trial_id", PRETRAIN_TRIAL_ID))


def _environment(record: ExperimentRecord, environ: Mapping[str, str]) -> dict[str, str]:
    scaling = scaling_of(record)
    is_elastic = scaling.min_workers() < scaling.max_workers()
    return {
        **JOB_ENVIRONMENT,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(TRY_FEWER_AFTER_S if is_elastic else WAIT_FOR_ROOM_S),
        # Named, because the default changes with Ray's version; the token itself is the node's to have.
        "RAY_AUTH_MODE": environ.get("RAY_AUTH_MODE", "disabled"),
        # Ray sets 1, or all of the machine's cores, by whether CPUs were asked for.
        "OMP_NUM_THREADS": str(scaling.cpus_per_worker),
        **{name: environ[name] for name in _PASSED_ON if name in environ},
    }
