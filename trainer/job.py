"""One attempt of an experiment, seen from inside its job: how it begins and how it may end.

    complete.json               it is over, and how; written last, outranks Ray's verdict
    attempts/N/stopped.json     it obeyed a pause or a cancel
    attempts/N/failure.json     what went wrong, and whether another attempt may help

A process that is killed writes none of them: the service starts another attempt.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.context import JobDocument, experiment_key
from trainer.driver_log import DriverLog
from trainer.errors import Stopped, TrainerError
from trainer.storage import Storage, open_storage

__all__ = ["JobEnd", "run_job"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """How an experiment ended by itself."""

    state: str  # succeeded | failed
    best: dict[str, Any] | None  # {"trial", "metric", "value"}
    reason: dict[str, Any] | None = None


def run_job(document: JobDocument, body: Callable[[JobDocument, Storage], JobEnd]) -> int:
    """Run `body` as this attempt, leave the marker of how it ended, and return the exit status."""
    storage = open_storage(document.storage)
    prefix = f"attempts/{document.attempt}/"

    def leave(name: str, record: dict[str, Any]) -> None:
        storage.write(experiment_key(document.experiment_id, name), json.dumps(record).encode())

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with DriverLog(storage, experiment_key(document.experiment_id, f"{prefix}driver.log")):
        logger.info("attempt %d of %s (process %d)", document.attempt, document.experiment_id, os.getpid())
        try:
            end = body(document, storage)
        except Stopped as stop:
            leave(f"{prefix}stopped.json", {"kind": stop.context.get("kind"), "step": stop.context.get("step")})
            logger.info("%s", stop)
            return 0
        except TrainerError as error:
            leave(f"{prefix}failure.json", error.record())
            logger.error("%s: %s", error.code, error)  # noqa: TRY400 - the message is the whole story
            return 1
        except Exception as error:  # noqa: BLE001 - a bug: its trace belongs in the log, its message in the record
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"[:500]
            leave(f"{prefix}failure.json", {"code": "internal_error", "message": message, "retryable": True})
            return 1
        leave(
            "complete.json",
            {"state": end.state, "attempt": document.attempt, "best": end.best, "reason": end.reason},
        )
        return 0 if end.state == "succeeded" else 1
