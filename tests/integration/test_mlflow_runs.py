"""Each trial has one run in MLflow, whatever becomes of the requests that create it."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import uuid4

import pytest
from mlflow import MlflowClient

from trainer.mlflow_runs import EXPERIMENT_NAME, MlflowRuns, RunDescription
from trainer.storage import open_storage
from trainer.unrecorded import PARENT_RUN

pytestmark = pytest.mark.ray  # its stack has the MLflow

DESCRIPTION = RunDescription(
    name="once",
    params={"seed": "0", "epochs": "3"},
    tags={},
    dataset={"name": "shapes", "digest": "0" * 36, "source_type": "catalogue", "source": "shapes"},
)


@pytest.fixture
def experiment_id() -> str:
    return f"exp_{uuid4().hex}"


def create_late(client: MlflowClient, experiment_id: str, **tags: str) -> str:
    """Have a run made as by a request that was sent an hour ago and given up since."""
    mlflow_experiment = client.get_experiment_by_name(EXPERIMENT_NAME)
    assert mlflow_experiment is not None
    run = client.create_run(
        mlflow_experiment.experiment_id,
        start_time=int((time.time() - 3600) * 1000),
        tags={"simclr.experiment_id": experiment_id, **tags},
    )
    return str(run.info.run_id)


def runs_of(client: MlflowClient, experiment_id: str) -> set[str]:
    mlflow_experiment = client.get_experiment_by_name(EXPERIMENT_NAME)
    assert mlflow_experiment is not None
    found = client.search_runs(
        [mlflow_experiment.experiment_id], filter_string=f"tags.`simclr.experiment_id` = '{experiment_id}'"
    )
    return {run.info.run_id for run in found}


def test_a_request_that_is_obeyed_late_makes_no_second_run(mlflow_uri: str, tmp_path: Path, experiment_id: str) -> None:
    storage, client = open_storage(str(tmp_path)), MlflowClient(tracking_uri=mlflow_uri)
    runs = MlflowRuns(mlflow_uri, storage, experiment_id)
    parent = runs.ensure_parent(DESCRIPTION)
    trial = runs.ensure_trial("t0000", parent, DESCRIPTION)
    create_late(client, experiment_id, **{"simclr.role": "parent"})
    create_late(client, experiment_id, **{"simclr.role": "trial", "simclr.trial_id": "t0000"})

    next_start = MlflowRuns(mlflow_uri, storage, experiment_id)
    assert (next_start.find_parent(), next_start.ensure_parent(DESCRIPTION)) == (parent, parent)
    assert next_start.ensure_trial("t0000", parent, DESCRIPTION) == trial
    for name in (PARENT_RUN, "t0000"):
        next_start.delete_strays(name)
    assert runs_of(client, experiment_id) == {parent, trial}


def test_a_run_that_somebody_deleted_is_made_again(mlflow_uri: str, tmp_path: Path, experiment_id: str) -> None:
    storage, client = open_storage(str(tmp_path)), MlflowClient(tracking_uri=mlflow_uri)
    deleted = MlflowRuns(mlflow_uri, storage, experiment_id).ensure_parent(DESCRIPTION)
    client.delete_run(deleted)
    again = MlflowRuns(mlflow_uri, storage, experiment_id).ensure_parent(DESCRIPTION)
    assert again != deleted
    assert MlflowRuns(mlflow_uri, storage, experiment_id).find_parent() == again


def test_a_run_whose_creation_was_interrupted_says_all_the_same_what_it_is(
    mlflow_uri: str, tmp_path: Path, experiment_id: str
) -> None:
    storage, client = open_storage(str(tmp_path)), MlflowClient(tracking_uri=mlflow_uri)
    runs = MlflowRuns(mlflow_uri, storage, experiment_id)
    parent = create_late(client, experiment_id, **{"simclr.role": "parent"})
    trial = create_late(client, experiment_id, **{"simclr.role": "trial", "simclr.trial_id": "t0000"})
    client.log_param(trial, "epochs", "4")  # by the code of the version before
    assert runs.ensure_parent(DESCRIPTION.of_parent()) == parent
    assert runs.ensure_trial("t0000", parent, DESCRIPTION) == trial
    assert client.get_run(parent).data.params == {"seed": "0", "epochs": "3"}
    assert client.get_run(trial).data.params == {"seed": "0", "epochs": "4"}

    for key in storage.list(""):  # it was described, and died before it was kept
        storage.delete(key)
    assert MlflowRuns(mlflow_uri, storage, experiment_id).ensure_trial("t0000", parent, DESCRIPTION) == trial
    inputs = client.get_run(trial).inputs
    assert inputs is not None
    assert [given.dataset.digest for given in inputs.dataset_inputs] == ["0" * 36]
