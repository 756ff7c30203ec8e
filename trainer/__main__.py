"""`python -m trainer --document WORD`: the driver of a pretraining, run as a Ray job."""

from __future__ import annotations

import argparse
import sys

from trainer import metric_names
from trainer.context import PRETRAIN_TRIAL_ID, JobDocument, TrialContext
from trainer.errors import Stopped
from trainer.job import JobEnd, run_job
from trainer.launch import TrialResult, run_trial
from trainer.spec import PretrainSpec
from trainer.storage import Storage
from trainer.trial_table import TrialRow, TrialRowState, write_trial_table


def main(arguments: list[str]) -> int:
    """Run one attempt and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Run one attempt of a pretraining.")
    parser.add_argument("--document", required=True, help="a JobDocument as one word")
    return run_job(JobDocument.decode(parser.parse_args(arguments).document), pretrain)


def pretrain(document: JobDocument, storage: Storage) -> JobEnd:
    """Train the one trial of a pretraining through Ray Train."""
    spec = PretrainSpec.model_validate(document.spec)
    context = document.trial_context(PRETRAIN_TRIAL_ID, is_only_trial=True)
    _tabulate(storage, context, "running")
    try:
        result = run_trial(spec, context)
    except Stopped as stop:
        _tabulate(storage, context, "cancelled" if stop.context.get("kind") == "cancel" else "pending")
        raise
    except Exception:
        _tabulate(storage, context, "failed")
        raise
    _tabulate(storage, context, "succeeded", result)
    return JobEnd(state="succeeded", best=_best(result))


def _best(result: TrialResult) -> dict[str, object] | None:
    for metric in (metric_names.LINEAR_ACCURACY, metric_names.KNN_ACCURACY):
        if metric in result.metrics:
            return {"trial": PRETRAIN_TRIAL_ID, "metric": metric, "value": result.metrics[metric]}
    return {"trial": PRETRAIN_TRIAL_ID, "metric": None, "value": None}


def _tabulate(storage: Storage, context: TrialContext, state: TrialRowState, result: TrialResult | None = None) -> None:
    row = TrialRow(
        id=context.trial_id,
        state=state,
        attempt=context.attempt,
        metrics=result.metrics if result else {},
        mlflow_run_id=result.mlflow_run_id if result else None,
    )
    write_trial_table(storage, context.experiment_id, [row])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
