"""Starting a trial: in this process, or as W workers of Ray Train.

Both ways run the same `trainer.loop.train`. A worker group that loses a member is started again
as a whole by Ray and goes on from the last checkpoint; how often is bounded, and apart from the
attempts that the service counts.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer.context import TrialContext
from trainer.errors import TrainerError
from trainer.loop import EpochReport, OnEpoch, train
from trainer.spec import PretrainSpec, WorkerRange
from trainer.storage import BlobMissing, open_storage
from trainer.team import Team, usable_workers

__all__ = ["EpochReport", "OnEpoch", "TrialFailed", "TrialResult", "run_trial", "run_trial_in_process"]

logger = logging.getLogger(__name__)

# Each Ray default that these replace hangs for ever or for half an hour, or retries without end.
COLLECTIVE_TIMEOUT_S: Final = 300
MAX_WORKER_FAILURES: Final = 3
MAX_CONTROLLER_FAILURES: Final = 3


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
    if (result := finished_trial(context)) is None:
        train(spec, context, Team(), on_epoch=on_epoch)
        result = finished_trial(context)
    return _require(result, context)


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


def _require(result: TrialResult | None, context: TrialContext) -> TrialResult:
    if result is None:
        raise TrialFailed(f"trial {context.trial_id} ended without a completion marker", trial_id=context.trial_id)
    return result


# --- through Ray Train ----------------------------------------------------------------------------


def _through_ray(spec: PretrainSpec, context: TrialContext, on_epoch: OnEpoch | None) -> TrialResult:
    from ray.train.v2.api.exceptions import TrainingFailedError

    outcome_key = context.key(f"outcome-{context.attempt:04d}.json")
    try:
        _trainer(spec, context, on_epoch).fit()
    except TrainingFailedError as error:
        raise TrialFailed(f"the workers of trial {context.trial_id} failed: {_cause(error)}") from error
    try:
        outcome = json.loads(open_storage(context.storage).read(outcome_key))
    except BlobMissing:
        return _require(finished_trial(context), context)
    raise _error_of(outcome)


def _trainer(spec: PretrainSpec, context: TrialContext, on_epoch: OnEpoch | None) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    scaling = spec.scaling
    workers = scaling.num_workers
    has_gpu = scaling.gpus_per_worker > 0
    resources = {"CPU": float(scaling.cpus_per_worker)} | ({"GPU": float(scaling.gpus_per_worker)} if has_gpu else {})
    return TorchTrainer(
        _run_worker,
        train_loop_config={
            "spec": spec.model_dump(mode="json"),
            "context": context.model_dump(mode="json"),
            "on_epoch": on_epoch,
        },
        torch_config=TorchConfig(backend="nccl" if has_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=(workers.min, workers.max) if isinstance(workers, WorkerRange) else workers,  # type: ignore[arg-type] # Ray shows types of its first version
            use_gpu=has_gpu,
            resources_per_worker=resources,
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
    """Run on each Ray Train worker."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    spec = PretrainSpec.model_validate(config["spec"])
    context = TrialContext.model_validate(config["context"])
    team = _form_team(spec)
    if team is None:
        return
    try:
        train(spec, context, team, on_epoch=config["on_epoch"])
    except TrainerError as error:
        if error.retryable:
            raise
        # Another start would end the same way: say so and end, rather than let Ray start it again.
        logger.error("%s: %s", error.code, error)  # noqa: TRY400 - the message is the whole story
        if team.is_first:
            key = context.key(f"outcome-{context.attempt:04d}.json")
            open_storage(context.storage).write(key, json.dumps(error.record()).encode())


def _form_team(spec: PretrainSpec) -> Team | None:
    """Return this worker's team; None for one that is more than the global batch can be shared by."""
    import ray.train.torch
    import torch
    import torch.distributed as dist

    ray_context = ray.train.get_context()
    rank, available = ray_context.get_world_rank(), ray_context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(spec.scaling.cpus_per_worker)
    else:
        torch.cuda.set_device(device)
    workers = usable_workers(spec.batch_size, available)
    if workers == 1:
        return Team(device=device) if rank == 0 else None
    group: dist.ProcessGroup = dist.new_group(list(range(workers)))
    return Team(rank=rank, world_size=workers, group=group, device=device) if rank < workers else None


def _error_of(outcome: dict[str, Any]) -> TrainerError:
    """Return the error whose record a worker left."""
    kinds = {kind.code: kind for kind in _all_kinds(TrainerError)}
    kind = kinds.get(outcome["code"], TrainerError)
    return kind(outcome["message"], **outcome.get("context", {}))


def _all_kinds(kind: type[TrainerError]) -> list[type[TrainerError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _all_kinds(child))]


def _cause(error: BaseException) -> str:
    """Return the innermost message that Ray wrapped, on one line and bounded."""
    failures = getattr(error, "worker_failures", None) or {}
    inner = next(iter(failures.values()), error)
    while inner.__cause__ is not None:
        inner = inner.__cause__
    return " ".join(str(inner).split())[-500:]
