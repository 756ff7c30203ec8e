"""The error that ended an attempt, left in storage for its driver where another start would not help."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainer.context import TrialContext
from trainer.errors import Superseded, TrainerError
from trainer.storage import BlobMissing, open_storage

__all__ = ["final_errors_left", "left_outcome"]

logger = logging.getLogger(__name__)


@contextmanager
def final_errors_left(context: TrialContext) -> Iterator[None]:
    """Leave a final error of the body as the outcome, unless one is there, and end quietly: Ray restarts nobody.

    What another start could mend is raised, and so is Superseded: an old worker that wakes has no say
    in how the trial ends. A rank whose body fails because another's had a final error ends quietly too.
    """
    try:
        yield
    except Superseded:
        raise
    except TrainerError as error:
        if error.retryable:
            raise
        logger.error("%s: %s", error.code, error)  # noqa: TRY400 - the message is the whole story
        open_storage(context.storage).create(_key(context), json.dumps(error.record()).encode())
    except Exception as error:
        if left_outcome(context) is None:
            raise
        logger.info("ends with its team: %s", error)


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
