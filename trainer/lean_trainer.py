"""Ray Train without the processes that a run of this project has no use for, and outside its driver."""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import create_failure_policy
from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy
from ray.train.v2._internal.util import ObjectRefWrapper
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

__all__ = ["LeanTrainer"]


class LeanTrainer(DataParallelTrainer):
    """A trainer that hands out no Ray data sets, and whose placement group may end with its job.

    Each of the two would be a process that imports Ray Train, 2.5 s of CPU while the workers start.
    Not TorchTrainer's child, which loads torch in driver and controller before a worker is started:
    the workers form their process group themselves.

    Args:
        function: Run on each worker.
        is_only_one: Whether the job ends with this training: then Ray removes its placement group.
        options: Of DataParallelTrainer.
    """

    def __init__(self, function: Any, *, is_only_one: bool, **options: Any) -> None:
        super().__init__(function, **options)
        self._unused = (DatasetsCallback, *((PlacementGroupCleanerCallback,) if is_only_one else ()))

    def controller(self) -> TrainController:
        """Return what `fit` would start an actor with, for the actor that calls this to run."""
        return TrainController(
            train_fn_ref=ObjectRefWrapper(self._get_train_func()),
            train_run_context=self.train_run_context,
            scaling_policy=create_scaling_policy(self.scaling_config),  # type: ignore[arg-type] # Ray shows types of its first version
            failure_policy=create_failure_policy(self.run_config.failure_config),  # type: ignore[arg-type] # likewise
            callbacks=self._create_default_callbacks(),
        )

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, self._unused)]
