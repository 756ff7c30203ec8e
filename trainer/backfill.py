"""Backfill: what MLflow missed of trials that have ended, sent when it is back.

    python -m trainer.backfill --document WORD      the JobDocument of the experiment's last attempt

A trial that ends while MLflow is away leaves the rest of its story in its outbox, whether it
finished (`is_recorded: false` is in its marker then), failed or was stopped. Here the same pen sends
the same outbox, behind a fence of its own: in order, with the times of then, each point once,
however often this is repeated. Behind the trials comes what a sweep's parent run is still to have.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any

from trainer.context import JobDocument, TrialContext
from trainer.fence import take_fence
from trainer.mlflow_runs import MlflowRuns, RunDescription, flatten
from trainer.outbox import Outbox
from trainer.parent_run import ParentRun, recorded_description
from trainer.recorder import DRAIN_S, TrialRecorder
from trainer.storage import BlobMissing, Storage, open_storage
from trainer.unrecorded import PARENT_RUN, unrecorded_runs

__all__ = ["backfill"]

logger = logging.getLogger(__name__)

_MARKER = "complete.json"


def backfill(document: JobDocument, *, drain_s: float = DRAIN_S) -> list[str]:
    """Send MLflow what it missed of an ended experiment; return what `unrecorded_runs` still says then.

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
    for name in unrecorded_runs(storage, document.experiment_id):
        if name == PARENT_RUN:
            with ParentRun(document, storage, _parent_description(storage, document), drain_s=drain_s) as parent_run:
                parent_run.send_owed()
        elif not _send_trial(storage, document, name, drain_s=drain_s):
            break  # MLflow is away again: the others would wait as long for nothing
    return unrecorded_runs(storage, document.experiment_id)


def _send_trial(storage: Storage, document: JobDocument, trial_id: str, *, drain_s: float) -> bool:
    """Send what a trial's outbox still holds; return False if MLflow did not take it."""
    context = document.trial_context(trial_id, is_only_trial=document.kind == "pretrain")
    try:
        description = RunDescription(**json.loads(storage.read(context.key("metrics/description.json"))))
    except BlobMissing:
        logger.warning("trial %s of %s left no description: passed over", trial_id, document.experiment_id)
        return True
    outbox = Outbox(storage, context.key("metrics/"), take_fence(storage, context))
    recorder = TrialRecorder(storage=storage, context=context, outbox=outbox, description=description)
    if not context.is_only_trial:
        _runs(storage, context).ensure_parent(_parent_description(storage, document))
    recorder.start()
    if not recorder.close(drain_s=drain_s, is_patient=True):
        return False
    _complete_marker(storage, context, str(recorder.mlflow_run_id))
    logger.info("trial %s of %s is recorded", trial_id, document.experiment_id)
    return True


def _complete_marker(storage: Storage, context: TrialContext, mlflow_run_id: str) -> None:
    """Note in a finished trial's marker that MLflow has all; the run of another is closed by the service."""
    try:
        marker: dict[str, Any] = json.loads(storage.read(context.key(_MARKER)))
    except BlobMissing:
        return
    marker |= {"is_recorded": True, "mlflow_run_id": mlflow_run_id}
    # The service closes what it knew of; a run that is made only now ends here.
    _runs(storage, context).client.set_terminated(mlflow_run_id, status="FINISHED")
    storage.write(context.key(_MARKER), json.dumps(marker).encode())


def _parent_description(storage: Storage, document: JobDocument) -> RunDescription:
    return recorded_description(storage, document.experiment_id) or RunDescription(
        name=document.name, params=flatten(document.spec), tags={}
    )


def _runs(storage: Storage, context: TrialContext) -> MlflowRuns:
    return MlflowRuns(str(context.mlflow_uri), storage, context.experiment_id)


def main(arguments: list[str]) -> int:
    """Send what is unsent; exit 1 if some of it is so still."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m trainer.backfill", description=__doc__)
    parser.add_argument("--document", required=True, help="a JobDocument as one word")
    left = backfill(JobDocument.decode(parser.parse_args(arguments).document))
    for name in left:
        logger.error("MLflow did not take all of %s; start this again when it answers", name)
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
