"""The error that ended an attempt, left in storage for its driver where another start would not help."""

from __future__ import annotations

import json
from typing import Any

from trainer.context import TrialContext
from trainer.errors import TrainerError
from trainer.storage import BlobMissing, open_storage

__all__ = ["leave_outcome", "left_outcome"]


def leave_outcome(context: TrialContext, error: TrainerError) -> None:
    """Write the record of an error; rank 0 does it for all."""
    open_storage(context.storage).write(_key(context), json.dumps(error.record()).encode())


def left_outcome(context: TrialContext) -> TrainerError | None:
    """Return the error whose record a worker left, as its own kind; None if none was."""
    try:
        record: dict[str, Any] = json.loads(open_storage(context.storage).read(_key(context)))
    except BlobMissing:
        return None
    kinds = {kind.code: kind for kind in _all_kinds(TrainerError)}
    return kinds.get(record["code"], TrainerError)(record["message"], **record.get("context", {}))


def _key(context: TrialContext) -> str:
    return context.key(f"outcome-{context.attempt:04d}.json")


def _all_kinds(kind: type[TrainerError]) -> list[type[TrainerError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _all_kinds(child))]
