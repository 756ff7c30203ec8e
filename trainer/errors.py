"""The errors of training.

TrainerError                 code            retryable
├── SpecError                spec_invalid    no    the spec asks for something that cannot be computed
├── DataError                data_invalid    no    the images or labels cannot be used as they are
├── BatchTooLarge            batch_too_large no    a step would need more memory than a worker has left
├── NonFiniteLoss            non_finite_loss no    the loss became NaN or infinite at a step
├── CheckpointCorrupt        checkpoint_corrupt yes a checkpoint does not match its manifest
├── CheckpointMissing        checkpoint_missing no  the continued experiment left none to start from
├── StorageUnavailable       storage_unavailable yes storage refused too many writes in a row, or data cannot be reached
├── BundleInvalid            bundle_invalid  no    an encoder bundle is not what its record says
├── Superseded               superseded      no    a newer attempt owns this experiment
└── Stopped                  stopped         no    the owner asked for a pause or a cancel

Every error pickles (Ray carries them between processes) and turns into a record that the
service shows as the `reason` of an experiment.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "BatchTooLarge",
    "BundleInvalid",
    "CheckpointCorrupt",
    "CheckpointMissing",
    "DataError",
    "NonFiniteLoss",
    "SpecError",
    "Stopped",
    "StorageUnavailable",
    "Superseded",
    "TrainerError",
]


class TrainerError(Exception):
    """What went wrong in training, with the values that a person needs to mend it."""

    code: ClassVar[str] = "training_failed"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.context = context

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.context))

    def record(self) -> dict[str, Any]:
        """Return the JSON form: code, message, retryable and the typed context."""
        return {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            **({"context": self.context} if self.context else {}),
        }


def _rebuild(kind: type[TrainerError], message: str, context: dict[str, Any]) -> TrainerError:
    return kind(message, **context)


class SpecError(TrainerError):
    """The spec asks for something that cannot be computed."""

    code = "spec_invalid"


class DataError(TrainerError):
    """The images or labels cannot be used as they are; names the file or field."""

    code = "data_invalid"


class BatchTooLarge(TrainerError):
    """A step would need more memory than a worker has left; the context names both, and what would fit."""

    code = "batch_too_large"


class NonFiniteLoss(TrainerError):
    """The loss became NaN or infinite; the context has step, rank and value."""

    code = "non_finite_loss"


class CheckpointCorrupt(TrainerError):
    """A checkpoint does not match its manifest (torn write, wrong digest)."""

    code = "checkpoint_corrupt"
    retryable = True


class CheckpointMissing(TrainerError):
    """The experiment that this one continues has no checkpoint, or has it no more."""

    code = "checkpoint_missing"


class StorageUnavailable(TrainerError):
    """Storage refused more writes in a row than a run may lose, or a data set cannot be read, fetched or kept now."""

    code = "storage_unavailable"
    retryable = True


class BundleInvalid(TrainerError):
    """An encoder bundle is not what its record says, or holds what must not be loaded."""

    code = "bundle_invalid"


class Superseded(TrainerError):
    """A newer attempt has written its fence; this one must write nothing more."""

    code = "superseded"


class Stopped(TrainerError):
    """The owner asked for a pause or a cancel, and the run stopped at a step boundary."""

    code = "stopped"
