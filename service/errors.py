"""The errors of the service; HTTP statuses are given to them at the edge, in `problems`.

ServiceError                code                 retryable
├── ExperimentNotFound      experiment_not_found   no
├── TokenNotFound           token_not_found        no
├── ArtifactNotFound        artifact_not_found     no
├── IdempotencyConflict     idempotency_conflict   no    the key came with another body
├── StaleState              state_conflict         no    the experiment has moved on
├── IllegalTransition       illegal_transition     no    the table has no such move
├── StaleVersion            version_conflict       no    the ETag is of an older version
├── SettingsError           settings_invalid       no    refuses to start
└── Unavailable             unavailable            yes
    ├── StoreUnavailable    database_unavailable   yes
    ├── ClusterUnavailable  cluster_unavailable    yes
    ├── TrackingUnavailable tracking_unavailable   yes
    ├── BlobsUnavailable    storage_unavailable    yes
    └── DatasetsUnavailable datasets_unavailable   yes
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "ArtifactNotFound",
    "BlobsUnavailable",
    "ClusterUnavailable",
    "DatasetsUnavailable",
    "ExperimentNotFound",
    "IdempotencyConflict",
    "IllegalTransition",
    "ServiceError",
    "SettingsError",
    "StaleState",
    "StaleVersion",
    "StoreUnavailable",
    "TokenNotFound",
    "TrackingUnavailable",
    "Unavailable",
]


class ServiceError(Exception):
    """What went wrong, in words for the caller; `context` holds the values."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.context = context


class ExperimentNotFound(ServiceError):
    """No such experiment, or it belongs to someone else."""

    code = "experiment_not_found"


class TokenNotFound(ServiceError):
    """No such token."""

    code = "token_not_found"


class ArtifactNotFound(ServiceError):
    """No such artifact, or a path that leaves the artifact root."""

    code = "artifact_not_found"


class IdempotencyConflict(ServiceError):
    """The idempotency key was used with another body."""

    code = "idempotency_conflict"


class StaleState(ServiceError):
    """The experiment is no longer in the state this write started from."""

    code = "state_conflict"


class IllegalTransition(ServiceError):
    """The lifecycle has no such move."""

    code = "illegal_transition"


class StaleVersion(ServiceError):
    """The experiment has changed since the version the caller names."""

    code = "version_conflict"


class SettingsError(ServiceError):
    """The settings do not allow a start; names the variable and the way out."""

    code = "settings_invalid"


class Unavailable(ServiceError):
    """Something the service rests on does not answer, or (`is_refusal`) refuses what it was asked; try again later.

    A refusal says something of this one call; what is silent to one caller is silent to all.
    """

    code = "unavailable"
    retryable = True

    def __init__(self, message: str, *, is_refusal: bool = False, **context: Any) -> None:
        super().__init__(message, **context)
        self.is_refusal = is_refusal


class StoreUnavailable(Unavailable):
    """The database does not answer."""

    code = "database_unavailable"


class ClusterUnavailable(Unavailable):
    """Ray does not answer."""

    code = "cluster_unavailable"


class TrackingUnavailable(Unavailable):
    """MLflow does not answer."""

    code = "tracking_unavailable"


class BlobsUnavailable(Unavailable):
    """Storage does not answer."""

    code = "storage_unavailable"


class DatasetsUnavailable(Unavailable):
    """The bucket of the data sets does not answer, or does not let this service in; see SIMCLR_DATASETS."""

    code = "datasets_unavailable"
