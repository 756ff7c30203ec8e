"""The errors of sweeps, beside those of training (`trainer.errors`).

TrainerError
└── SweepInterrupted    sweep_interrupted    yes    the driver ended before its trials, and no one asked it to
"""

from __future__ import annotations

from trainer.errors import TrainerError

__all__ = ["SweepInterrupted"]


class SweepInterrupted(TrainerError):
    """Trials are left that no one will start in this attempt, and the owner asked for no stop."""

    code = "sweep_interrupted"
    retryable = True
