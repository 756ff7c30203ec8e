"""What a job is told besides its spec: who it is and where things are.

The service writes one `JobDocument` per attempt and passes it on the command line; nothing else
reaches a job, and no secret is in it. Storage keys are derived here and nowhere else.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["JobDocument", "ParentTrial", "TrialContext", "bundle_key", "experiment_key", "trial_key"]

PRETRAIN_TRIAL_ID = "t0000"  # a pretraining has one trial


class ParentTrial(BaseModel):
    """The trial whose last checkpoint a continued experiment starts from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment_id: str
    trial_id: str | None  # None: it has none that is the same, and the trial starts anew


class JobDocument(BaseModel):
    """The one argument of `python -m trainer` and `python -m tune_spaces`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    experiment_id: str
    name: str
    kind: Literal["pretrain", "sweep"]
    attempt: int
    spec: dict[str, Any]
    storage: str  # directory or s3:// address
    mlflow_uri: str | None = None
    datasets_dir: str | None = None  # directory or s3:// address
    cache_dir: str  # node-local; data sets decoded or fetched, rebuilt when lost
    parent: ParentTrial | None = None

    def encode(self) -> str:
        """Return the document as one shell-safe word: whatever a user named is inert in it."""
        return base64.urlsafe_b64encode(zlib.compress(self.model_dump_json().encode())).decode()

    @classmethod
    def decode(cls, word: str) -> JobDocument:
        """Return the document that `encode` wrote."""
        return cls.model_validate_json(zlib.decompress(base64.urlsafe_b64decode(word)))

    def trial_context(self, trial_id: str, *, is_only_trial: bool = False) -> TrialContext:
        """Return the context of one trial of this job."""
        return TrialContext(
            experiment_id=self.experiment_id,
            experiment_name=self.name,
            trial_id=trial_id,
            attempt=self.attempt,
            storage=self.storage,
            mlflow_uri=self.mlflow_uri,
            datasets_dir=self.datasets_dir,
            cache_dir=self.cache_dir,
            parent=self.parent,
            is_only_trial=is_only_trial,
        )


class TrialContext(BaseModel):
    """Identity and places of one trial, the same on every worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment_id: str
    experiment_name: str
    trial_id: str
    attempt: int
    storage: str
    mlflow_uri: str | None = None
    datasets_dir: str | None = None
    cache_dir: str
    parent: ParentTrial | None = None
    is_only_trial: bool = False  # of its experiment: then it sees to the parent run itself

    def key(self, name: str) -> str:
        """Return the storage key of something this trial owns."""
        return trial_key(self.experiment_id, self.trial_id, name)


def experiment_key(experiment_id: str, name: str) -> str:
    """Return the storage key of something an experiment owns: `complete.json`, `stop.json`, ..."""
    return f"experiments/{experiment_id}/{name}"


def trial_key(experiment_id: str, trial_id: str, name: str) -> str:
    """Return the storage key of something a trial owns: `fence.json`, `complete.json`, ..."""
    return experiment_key(experiment_id, f"trials/{trial_id}/{name}")


def bundle_key(experiment_id: str, trial_id: str, marker: Mapping[str, Any]) -> str:
    """Return the storage key of the encoder bundle that a trial's completion marker names.

    A marker taken over from a continued sweep names its parent's, and the trial has that under the
    same name; an early version's names none, or `encoder.zip`.
    """
    return trial_key(experiment_id, trial_id, str(marker.get("bundle", "encoder.zip")).rpartition("/")[2])
