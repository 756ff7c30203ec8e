"""What the driver is told of a trial that has stopped running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from trainer.context import JobDocument, TrialContext
from tune_spaces.driver.supply import TrialSupply
from tune_spaces.spec import SweepSpec

__all__ = ["Outcome", "RunTrials"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one trial ended: by its own completion marker, stopped by its owner, or failed."""

    trial: str
    state: Literal["ended", "stopped", "failed"]
    reason: dict[str, Any] | None = None


class RunTrials(Protocol):
    """A way to run trials; on Ray Tune it is `tune_spaces.driver.execution.run_trials`."""

    def __call__(
        self,
        sweep: SweepSpec,
        document: JobDocument,
        supply: TrialSupply,
        *,
        num_trials: int,
        contexts: Callable[[str], TrialContext],
        on_start: Callable[[str], None],
        on_end: Callable[[Outcome], None],
        should_end: Callable[[], bool],
    ) -> None:
        """Run what `supply` gives until it gives no more or the sweep should end.

        Args:
            sweep: A complete sweep.
            document: Of this attempt.
            supply: Which trials; asked when there is room for one.
            num_trials: How many it may give at most.
            contexts: Returns the context of a trial.
            on_start: Told that a trial starts; in this process.
            on_end: Told how it ended; in this process.
            should_end: Asked before each new trial.
        """
