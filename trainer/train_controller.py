"""Ray Train's controller, in an actor that a driver starts without loading Ray Train.

Ray's own `fit` loads all of Ray Train in the driver, pandas and Arrow with it, more than a second
of CPU, before it starts a process that loads the same again. Here the driver sends what makes the
trainer, and only the controller's process loads it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError

if TYPE_CHECKING:
    from ray.train.v2.api.exceptions import TrainingFailedError

    from trainer.lean_trainer import LeanTrainer

__all__ = ["fit"]


class TrainController:
    """Looks after the workers of one training; Ray shows its process under this name."""

    def __init__(self, make_trainer: Callable[[], LeanTrainer]) -> None:
        self._controller = make_trainer().controller()

    async def run(self) -> TrainingFailedError | None:
        """Train to the end and return what failed, if anything did."""
        await self._controller.run()  # type: ignore[no-untyped-call] # Ray's own omission
        return self._controller.get_training_failed_error()

    async def abort(self) -> None:
        """End the workers, then this process."""
        await self._controller.abort()  # type: ignore[no-untyped-call] # Ray's own omission


def fit(make_trainer: Callable[[], LeanTrainer]) -> TrainingFailedError | None:
    """Train to the end and return what failed, if anything did.

    An interrupt of the main thread ends the workers first and then this process.

    Args:
        make_trainer: Is called in the controller's process, on this node: it must pickle.

    Raises:
        RayActorError: If the controller's process died.
    """
    if not ray.is_initialized():
        ray.init()
    here = ray.get_runtime_context().get_node_id()
    settings = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    controller: Any = (
        ray.remote(TrainController)
        .options(
            num_cpus=0,
            label_selector={"ray.io/node-id": here},
            # it waits for workers inside its event loop, as Ray's own does, and would warn of each time
            runtime_env={"env_vars": {**settings, "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}},
        )
        .remote(make_trainer)
    )
    if threading.current_thread() is threading.main_thread():  # of a sweep's trial it is not
        _end_with(controller)
    failure: TrainingFailedError | None = ray.get(controller.run.remote())
    return failure


def _end_with(controller: Any) -> None:
    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # who interrupts again waits for nothing
        try:
            ray.get(controller.abort.remote())
        except RayActorError:
            sys.exit(0)

    signal.signal(signal.SIGINT, interrupted)
