"""Runs in MLflow: what they say of themselves, and how each is made once.

One parent run an experiment, one run a trial below it, told apart by tags.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.context import experiment_key
from trainer.outbox import Point
from trainer.storage import BlobMissing, Storage
from trainer.unrecorded import PARENT_RUN

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["EXPERIMENT_NAME", "MlflowRuns", "RunDescription", "flatten"]

logger = logging.getLogger(__name__)

EXPERIMENT_NAME = "simclr"
TAG_EXPERIMENT = "simclr.experiment_id"
TAG_TRIAL = "simclr.trial_id"
TAG_ROLE = "simclr.role"
TAG_PARENT = "mlflow.parentRunId"
POINTS_A_BATCH = 1000  # MLflow's limit for one log-batch call


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested JSON as flat MLflow params: dotted path -> text; lists stay JSON."""
    flat: dict[str, str] = {}
    for name, value in document.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value if isinstance(value, str) else json.dumps(value)
    return flat


class RunDescription:
    """What an MLflow run says of itself from the start: name, params, tags and data set."""

    def __init__(
        self, *, name: str, params: Mapping[str, str], tags: Mapping[str, str], dataset: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.params = dict(params)
        self.tags = dict(tags)
        self.dataset = dict(dataset) if dataset else None

    def of_parent(self) -> RunDescription:
        """Return what the parent run of an only trial says: the same, but for the trial's part of the name."""
        return RunDescription(name=self.name.rpartition("/")[0], params=self.params, tags=self.tags)


class MlflowRuns:
    """Runs of one experiment, found or created. Raises what the MLflow client and storage raise.

    Which run a trial has is kept in storage: a request to create one that timed out may be obeyed
    long after, and leave a second run with the same tags.
    """

    def __init__(self, uri: str, storage: Storage, experiment_id: str) -> None:
        from mlflow import MlflowClient

        self.client: MlflowClient = MlflowClient(tracking_uri=uri)
        self._storage = storage
        self._experiment_id = experiment_id
        self._mlflow_experiment_id = self._find_or_create_experiment()

    def _find_or_create_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(EXPERIMENT_NAME)
        if found is None:
            try:
                return str(self.client.create_experiment(EXPERIMENT_NAME))
            except MlflowException:  # someone else was first: what they made is found now, or this raises
                found = self.client.get_experiment_by_name(EXPERIMENT_NAME)
                if found is None:
                    raise
        return str(found.experiment_id)

    def find_parent(self) -> str | None:
        """Return the run id of the experiment's parent run; None while nobody has ensured it."""
        return self._known(PARENT_RUN)

    def ensure_parent(self, description: RunDescription) -> str:
        """Return the experiment's parent run. One process creates it: the driver, or an only trial's rank 0."""
        return self._ensure(PARENT_RUN, description, {TAG_ROLE: "parent"})

    def ensure_trial(self, trial_id: str, parent_run_id: str, description: RunDescription) -> str:
        """Return the trial's run. Only the start that holds the trial's fence creates it."""
        tags = {TAG_ROLE: "trial", TAG_TRIAL: trial_id, TAG_PARENT: parent_run_id}
        return self._ensure(trial_id, description, tags)

    def delete_strays(self, name: str) -> None:
        """Delete the runs of a trial, or of the parent, that are not the one that is kept."""
        kept = self._known(name)
        for run_id in self._of(name) if kept else []:
            if run_id != kept:
                logger.info("MLflow run %s of %s is a stray one: deleted", run_id, name)
                self.client.delete_run(run_id)

    def log_points(self, run_id: str, points: tuple[Point, ...]) -> None:
        """Log points; those that the run has already, equal to the bit, are kept once."""
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.timestamp_ms, point.step) for point in points]
        for start in range(0, len(metrics), POINTS_A_BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + POINTS_A_BATCH])

    def log_artifact(self, run_id: str, path: str, data: bytes) -> None:
        """Put `data` as the run's artifact `path`; repeating replaces it by the same bytes."""
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / name
            file.write_bytes(data)
            self.client.log_artifact(run_id, str(file), artifact_path=folder or None)

    def _ensure(self, name: str, description: RunDescription, tags: dict[str, str]) -> str:
        if (known := self._known(name)) is not None:
            return known
        made = self._of(name)  # by a start that died before it was kept, perhaps before it was described
        run_id = made[0] if made else self._create(description, tags)
        self._describe(run_id, description)
        key, document = self._key(name), json.dumps({"run_id": run_id}).encode()
        if not self._storage.create(key, document):
            if (known := self._known(name)) is not None:  # another process was first
                return known
            self._storage.write(key, document)  # what was kept is gone from MLflow
        return run_id

    def _key(self, name: str) -> str:
        return experiment_key(self._experiment_id, f"mlflow/{name}.json")

    def _known(self, name: str) -> str | None:
        """Return the run that is kept; None if there is none, or if it was deleted in MLflow."""
        from mlflow.exceptions import MlflowException

        try:
            run_id = str(json.loads(self._storage.read(self._key(name)))["run_id"])
            stage = self.client.get_run(run_id).info.lifecycle_stage
        except BlobMissing:
            return None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # its database is another one now
                return None
            raise
        return run_id if stage == "active" else None

    def _of(self, name: str) -> list[str]:
        """Return the runs of a trial or of the parent, the oldest first."""
        is_it = f"tags.`{TAG_ROLE}` = 'parent'" if name == PARENT_RUN else f"tags.`{TAG_TRIAL}` = '{name}'"
        runs = self.client.search_runs(
            [self._mlflow_experiment_id],
            filter_string=f"tags.`{TAG_EXPERIMENT}` = '{self._experiment_id}' AND {is_it}",
            order_by=["attributes.start_time ASC"],
        )
        return [str(run.info.run_id) for run in runs]

    def _create(self, description: RunDescription, tags: dict[str, str]) -> str:
        run = self.client.create_run(
            self._mlflow_experiment_id,
            run_name=description.name,
            tags={TAG_EXPERIMENT: self._experiment_id, **tags, **description.tags},
        )
        return str(run.info.run_id)

    def _describe(self, run_id: str, description: RunDescription) -> None:
        """Log the params that the run lacks, another value being refused, and the data set, which MLflow keeps once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        known = self.client.get_run(run_id).data.params
        params = [Param(key, value[:6000]) for key, value in description.params.items() if key not in known]
        self.client.log_batch(run_id, params=params)
        if description.dataset:
            dataset = Dataset(**description.dataset)
            self.client.log_inputs(
                run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "pretrain")])]
            )
