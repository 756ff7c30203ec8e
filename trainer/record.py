"""What a trial's MLflow run says of itself from the start."""

from __future__ import annotations

from trainer.code_version import CODE_VERSION
from trainer.context import TrialContext
from trainer.data.dataset import Dataset
from trainer.mlflow_runs import RunDescription, flatten
from trainer.precision import Precision
from trainer.spec import PretrainSpec
from trainer.team import Team

__all__ = ["describe_run"]


def describe_run(
    spec: PretrainSpec, context: TrialContext, dataset: Dataset, team: Team, precision: Precision
) -> RunDescription:
    """Return name, params (the resolved spec, flat), tags and data set of a trial's run."""
    return RunDescription(
        name=f"{context.experiment_name}/{context.trial_id}",
        params=flatten(spec.resolved()),
        tags={
            "simclr.kind": "pretrain" if context.is_only_trial else "sweep",
            "simclr.attempt": str(context.attempt),
            "simclr.spec_digest": spec.digest(),
            "simclr.seed": str(spec.seed),
            "simclr.code_version": CODE_VERSION,
            "simclr.dataset_digest": dataset.digest,
            "simclr.precision": precision.name,
            "simclr.num_workers": str(team.world_size),
        },
        dataset={
            "name": dataset.name,
            "digest": dataset.digest[:36],  # MLflow's limit
            "source_type": "catalogue",
            "source": dataset.name,
        },
    )
