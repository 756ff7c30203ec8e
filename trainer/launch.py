"""Starting a trial: in this process, or as W workers of Ray Train.

Both ways run the same `trainer.loop.train`. A worker group that loses a member is started again
as a whole by Ray and goes on from the last checkpoint; how often is bounded, and apart from the
attempts that the service counts.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer.context import TrialContext
from trainer.epoch_report import EpochReport, OnEpoch
from trainer.errors import TrainerError
from trainer.fence import take_fence
from trainer.outcome import left_outcome
from trainer.spec import PretrainSpec, WorkerRange
from trainer.storage import BlobMissing, open_storage

if TYPE_CHECKING:
    from trainer.lean_trainer import LeanTrainer

__all__ = ["EpochReport", "OnEpoch", "TrialFailed", "TrialResult", "run_trial", "run_trial_in_process"]

logger = logging.getLogger(__name__)

# Ray's own default for the second is to try again without end.
MAX_WORKER_FAILURES: Final = 3
MAX_CONTROLLER_FAILURES: Final = 3

# How often a team with a range of workers looks for nodes that joined or left. Ray's own default is
# a minute; a resize costs a start of the workers and the steps since the last checkpoint.
RESIZE_CHECK_EVERY_S: Final = 15.0


class TrialFailed(TrainerError):
    """The workers failed more often than is borne, or Ray could not start them."""

    code = "workers_failed"
    retryable = True


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended, as its completion marker says."""

    state: str  # succeeded | stopped_early
    step: int
    metrics: dict[str, float]
    attempt: int
    mlflow_run_id: str | None
    marker: dict[str, Any]


def run_trial(spec: PretrainSpec, context: TrialContext, *, on_epoch: OnEpoch | None = None) -> TrialResult:
    """Train one trial on the workers of its spec through Ray Train, and return how it ended.

    `on_epoch` runs on rank 0, in a worker: it must pickle.

    Raises:
        TrainerError: What ended the trial: Stopped, NonFiniteLoss, DataError, TrialFailed, ...
    """
    return finished_trial(context) or _through_ray(spec, context, on_epoch)


def run_trial_in_process(spec: PretrainSpec, context: TrialContext, *, on_epoch: OnEpoch | None = None) -> TrialResult:
    """Train one trial alone in this process (W = 1, CPU), and return how it ended."""
    from trainer.loop import train
    from trainer.team import Team

    if finished_trial(context) is None:
        train(spec, context, Team(), on_epoch=on_epoch)
    return _ended_trial(context)


def finished_trial(context: TrialContext) -> TrialResult | None:
    """Return how the trial ended, if its completion marker is there: it is never run twice."""
    try:
        marker = json.loads(open_storage(context.storage).read(context.key("complete.json")))
    except BlobMissing:
        return None
    return TrialResult(
        state=marker["state"],
        step=marker["step"],
        metrics=marker.get("metrics", {}),
        attempt=marker["attempt"],
        mlflow_run_id=marker.get("mlflow_run_id"),
        marker=marker,
    )


def _ended_trial(context: TrialContext, failure: TrialFailed | None = None) -> TrialResult:
    """Return how the trial ended: its completion marker outranks an outcome, and that outranks what Ray saw.

    Raises:
        TrainerError: The outcome that a worker left.
        Superseded: If a later attempt owns the trial.
        TrialFailed: `failure`, or that nothing tells how it ended.
    """
    if (result := finished_trial(context)) is not None:
        return result
    if (outcome := left_outcome(context)) is not None:
        raise outcome from failure
    take_fence(open_storage(context.storage), context)  # also shuts out a worker that yet lives
    raise failure or TrialFailed(
        f"trial {context.trial_id} ended without a completion marker", trial_id=context.trial_id
    )


# --- through Ray Train ----------------------------------------------------------------------------


def _through_ray(spec: PretrainSpec, context: TrialContext, on_epoch: OnEpoch | None) -> TrialResult:
    from trainer.train_controller import fit

    failure = None
    if (error := fit(partial(_trainer, spec, context, on_epoch))) is not None:
        failure = TrialFailed(f"the workers of trial {context.trial_id} failed: {_cause(error)}")
        failure.__cause__ = error
    return _ended_trial(context, failure)


def _trainer(spec: PretrainSpec, context: TrialContext, on_epoch: OnEpoch | None) -> LeanTrainer:
    """Return what trains the trial; called in the controller's process, the only one but the workers with Ray Train."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from trainer.lean_trainer import LeanTrainer

    scaling = spec.scaling
    workers = scaling.num_workers
    has_gpu = scaling.gpus_per_worker > 0
    resources = {"CPU": float(scaling.cpus_per_worker)} | ({"GPU": float(scaling.gpus_per_worker)} if has_gpu else {})
    return LeanTrainer(
        _run_worker,
        claimant=f"{context.experiment_id}-{context.trial_id}",
        is_only_one=context.is_only_trial,
        train_loop_config={
            "spec": spec.model_dump(mode="json"),
            "context": context.model_dump(mode="json"),
            "on_epoch": on_epoch,
        },
        scaling_config=ScalingConfig(
            num_workers=(workers.min, workers.max) if isinstance(workers, WorkerRange) else workers,  # type: ignore[arg-type] # Ray shows types of its first version
            use_gpu=has_gpu,
            resources_per_worker=resources,
            placement_strategy=scaling.placement.upper(),
            elastic_resize_monitor_interval_s=RESIZE_CHECK_EVERY_S,  # type: ignore[call-arg] # likewise
        ),
        run_config=RunConfig(
            # The name is of one attempt: Ray would silently resume from what an old one left.
            name=f"{context.experiment_id}-{context.trial_id}-a{context.attempt}",
            storage_path=str(Path(context.cache_dir) / "ray-train"),  # holds no checkpoint: ours are in storage
            failure_config=FailureConfig(
                max_failures=MAX_WORKER_FAILURES,
                controller_failure_limit=MAX_CONTROLLER_FAILURES,  # type: ignore[call-arg] # likewise
            ),
        ),
    )


def _run_worker(config: dict[str, Any]) -> None:
    """Run on each worker; what it needs is imported there, so that a driver never loads torch."""
    from trainer.worker import run_worker

    run_worker(
        PretrainSpec.model_validate(config["spec"]),
        TrialContext.model_validate(config["context"]),
        on_epoch=config["on_epoch"],
    )


def _cause(error: BaseException) -> str:
    """Return the innermost message that Ray wrapped, on one line and bounded."""
    failures = getattr(error, "worker_failures", None) or {}
    inner = next(iter(failures.values()), error)
    while inner.__cause__ is not None:
        inner = inner.__cause__
    return " ".join(str(inner).split())[-500:]
