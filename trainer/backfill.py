"""Backfill: what MLflow missed of trials that have ended, sent when it is back.

    python -m trainer.backfill --document WORD      the JobDocument of the experiment's last attempt

A trial that ends while MLflow is away leaves the rest of its story in its outbox, and
`is_recorded: false` in its marker. Here the same pen sends the same outbox, behind a fence of its
own: in order, with the times of then, each point once, however often this is repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any

from trainer.context import JobDocument, TrialContext
from trainer.fence import take_fence
from trainer.outbox import Outbox
from trainer.storage import BlobMissing, Storage, open_storage
from trainer.tracking import DRAIN_S, MlflowRuns, RunDescription, TrialRecorder, flatten
from trainer.unrecorded import unrecorded_trials

__all__ = ["backfill"]

logger = logging.getLogger(__name__)

_MARKER = "complete.json"


def backfill(document: JobDocument, *, drain_s: float = DRAIN_S) -> list[str]:
    """Send MLflow what it missed of an experiment's ended trials; return the ids of those it did not take.

    Args:
        document: Of the experiment's last attempt: an earlier one may no longer write.
        drain_s: How long MLflow may take nothing before it counts as away.

    Raises:
        Superseded: If a later attempt has begun.
        OSError: If storage does not answer.
        ValueError: If the document names no MLflow.
    """
    if document.mlflow_uri is None:
        raise ValueError("the document names no MLflow to send to")
    storage = open_storage(document.storage)
    for trial_id in unrecorded_trials(storage, document.experiment_id):
        context = document.trial_context(trial_id, is_only_trial=document.kind == "pretrain")
        try:
            description = RunDescription(**json.loads(storage.read(context.key("metrics/description.json"))))
        except BlobMissing:
            logger.warning("trial %s of %s left no description: passed over", trial_id, document.experiment_id)
            continue
        if not _send(storage, context, document, description, drain_s=drain_s):
            break  # MLflow is away again: the others would wait as long for nothing
        logger.info("trial %s of %s is recorded", trial_id, document.experiment_id)
    return unrecorded_trials(storage, document.experiment_id)


def _send(
    storage: Storage, context: TrialContext, document: JobDocument, description: RunDescription, *, drain_s: float
) -> bool:
    outbox = Outbox(storage, context.key("metrics/"), take_fence(storage, context))
    recorder = TrialRecorder(storage=storage, context=context, outbox=outbox, description=description)
    if not context.is_only_trial:
        _runs(context).ensure_parent(RunDescription(name=document.name, params=flatten(document.spec), tags={}))
    recorder.start()
    if not recorder.close(drain_s=drain_s, is_patient=True):
        return False
    marker: dict[str, Any] = json.loads(storage.read(context.key(_MARKER)))
    marker |= {"is_recorded": True, "mlflow_run_id": recorder.mlflow_run_id}
    # The service closes what it knew of; a run that is made only now ends here.
    _runs(context).client.set_terminated(str(recorder.mlflow_run_id), status="FINISHED")
    storage.write(context.key(_MARKER), json.dumps(marker).encode())
    return True


def _runs(context: TrialContext) -> MlflowRuns:
    return MlflowRuns(str(context.mlflow_uri), context.experiment_id)


def main(arguments: list[str]) -> int:
    """Send what is unsent; exit 1 if some of it is so still."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m trainer.backfill", description=__doc__)
    parser.add_argument("--document", required=True, help="a JobDocument as one word")
    left = backfill(JobDocument.decode(parser.parse_args(arguments).document))
    for trial_id in left:
        logger.error("MLflow did not take all of trial %s; start this again when it answers", trial_id)
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
