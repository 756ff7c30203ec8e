"""The encoder of an experiment in MLflow's model registry, where the alias `best` finds it.

    mlflow artifacts download --artifact-uri models:/NAME-ID@best        the files of the bundle

Each experiment has a registered model of its own, so that no other experiment of the same name
moves its alias. A version is known by the digest of its bundle: registering it again finds it.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["ALIAS", "ENCODER_FOLDER", "BestEncoder", "register_encoder"]

logger = logging.getLogger(__name__)

ALIAS: Final = "best"
ENCODER_FOLDER: Final = "encoder"  # of a trial's run, with the files of its bundle
TAG_SHA256: Final = "simclr.bundle_sha256"


@dataclass(frozen=True, kw_only=True)
class BestEncoder:
    """The encoder that an experiment came to, and the run whose artifact it is."""

    experiment_id: str
    experiment_name: str
    trial_id: str
    mlflow_run_id: str
    bundle_sha256: str

    @property
    def model_name(self) -> str:
        """Return the name of the registered model; MLflow takes neither `/` nor `:` in it."""
        return re.sub(r"[^\w.-]+", "-", f"{self.experiment_name}-{self.experiment_id}")


def register_encoder(client: MlflowClient, encoder: BestEncoder) -> None:
    """See to it that the encoder is a version of its model and that the alias points to it.

    A registry that refuses for good (no right to write, say) is left alone: the encoder is in its
    run and in storage all the same.

    Raises:
        mlflow.exceptions.MlflowException: If the server does not answer, or not now.
    """
    from mlflow.exceptions import MlflowException

    try:
        _ensure_model(client, encoder)
        version = _find_version(client, encoder) or _create_version(client, encoder)
        client.set_registered_model_alias(encoder.model_name, ALIAS, version)
    except MlflowException as error:
        status = error.get_http_status_code()  # type: ignore[no-untyped-call] # MLflow's own omission
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            raise
        logger.warning("the registry refuses the encoder of %s: %s", encoder.trial_id, error)


def _ensure_model(client: MlflowClient, encoder: BestEncoder) -> None:
    from mlflow.exceptions import MlflowException

    tags = {"simclr.experiment_id": encoder.experiment_id, "simclr.name": encoder.experiment_name}
    try:
        client.create_registered_model(encoder.model_name, tags=tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find_version(client: MlflowClient, encoder: BestEncoder) -> str | None:
    versions = client.search_model_versions(f"name = '{encoder.model_name}'")
    found = [one.version for one in versions if one.tags.get(TAG_SHA256) == encoder.bundle_sha256]
    return str(found[0]) if found else None


def _create_version(client: MlflowClient, encoder: BestEncoder) -> str:
    version = client.create_model_version(
        encoder.model_name,
        source=f"runs:/{encoder.mlflow_run_id}/{ENCODER_FOLDER}",
        run_id=encoder.mlflow_run_id,
        tags={TAG_SHA256: encoder.bundle_sha256, "simclr.trial_id": encoder.trial_id},
        await_creation_for=0,
    )
    return str(version.version)
