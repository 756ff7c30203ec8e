"""Ray Train without the processes that a run of this project has no use for, and outside its driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import create_failure_policy
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    ScalingPolicy,
)
from ray.train.v2._internal.util import ObjectRefWrapper
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.context import TrainRunContext

__all__ = ["LeanTrainer"]


class LeanTrainer(DataParallelTrainer):
    """A trainer that hands out no Ray data sets, and whose placement group may end with its job.

    Each of the two would be a process that imports Ray Train, 2.5 s of CPU while the workers start.
    Not TorchTrainer's child, which loads torch in driver and controller before a worker is started:
    the workers form their process group themselves.

    Args:
        function: Run on each worker.
        claimant: Who claims the workers' resources, one name for all attempts at the same training.
        is_only_one: Whether the job ends with this training: then Ray removes its placement group.
        options: Of DataParallelTrainer.
    """

    def __init__(self, function: Any, *, claimant: str, is_only_one: bool, **options: Any) -> None:
        super().__init__(function, **options)
        self._claimant = claimant
        self._unused = (DatasetsCallback, *((PlacementGroupCleanerCallback,) if is_only_one else ()))

    def controller(self) -> TrainController:
        """Return what `fit` would start an actor with, for the actor that calls this to run."""
        scaling: Any = self.scaling_config  # Ray shows types of its first version
        claim = _ElasticClaim if scaling.elasticity_enabled else _FixedClaim
        return TrainController(
            train_fn_ref=ObjectRefWrapper(self._get_train_func()),
            train_run_context=self.train_run_context,
            scaling_policy=claim(scaling, self._claimant),
            failure_policy=create_failure_policy(self.run_config.failure_config),  # type: ignore[arg-type] # likewise
            callbacks=self._create_default_callbacks(),
        )

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, self._unused)]


class _Claim(ScalingPolicy):
    """What one training claims of the cluster, under one name for all attempts at it.

    Ray names every run anew, and keeps the claim of a run whose processes were killed for another
    3 minutes. An elastic run starts on what nobody else claims: its next attempt would wait so long
    for what its own predecessor had.
    """

    def __init__(self, scaling: Any, claimant: str) -> None:
        super().__init__(scaling)
        self._claimant = claimant

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Claim what the workers need."""
        run: Any = SimpleNamespace(**vars(train_run_context) | {"run_id": self._claimant})
        super().after_controller_start(run)


class _FixedClaim(_Claim, FixedScalingPolicy):
    """Of as many workers as the spec says."""


class _ElasticClaim(_Claim, ElasticScalingPolicy):
    """Of as many as there is room for, within a range."""
