"""What one step of the dispatcher did."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.experiment import State

__all__ = ["Move", "StepReport"]


@dataclass(frozen=True, kw_only=True)
class Move:
    """One transition that a step made."""

    experiment_id: str
    source: State
    target: State


@dataclass(kw_only=True)
class StepReport:
    """Filled while the step goes on."""

    num_active: int = 0
    moves: list[Move] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)  # submission ids
    stopped: list[str] = field(default_factory=list)  # submission ids
    num_trial_events: int = 0
    num_closed: int = 0  # experiments whose MLflow runs were closed after their end
    errors: dict[str, str] = field(default_factory=dict)  # experiment id -> what kept it from being looked at
    outages: list[str] = field(default_factory=list)  # codes of what did not answer

    @property
    def is_idle(self) -> bool:
        """Return whether there was nothing to do but to wait."""
        return not (self.moves or self.submitted or self.stopped or self.num_trial_events or self.errors)
