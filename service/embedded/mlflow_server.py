"""The embedded MLflow server, on SQLite and a directory of artifacts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from service.embedded.addresses import LOOPBACK
from service.embedded.component import inherited_environment

__all__ = ["PREFERRED_PORT", "MlflowServer"]

PREFERRED_PORT: Final = 5000  # MLflow's own


@dataclass(frozen=True, kw_only=True)
class MlflowServer:
    """`mlflow server` with one worker."""

    port: int
    directory: Path
    name: str = "mlflow"
    title: str = "MLflow"

    @property
    def url(self) -> str:
        """Return the tracking address, which serves the pages too."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def health_url(self) -> str:
        """Return what answers while it works."""
        return f"{self.url}/health"

    @property
    def ready_url(self) -> str:
        """Return the same: what works can be used."""
        return self.health_url

    @property
    def identity(self) -> str:
        """Return version and interpreter."""
        return f"mlflow {version('mlflow')}, {sys.prefix}"

    @property
    def working_dir(self) -> Path:
        """Return the directory that holds database and artifacts."""
        return self.directory

    def command(self) -> list[str]:
        """Return the start with paths relative to the directory: any character may stand in its name."""
        return [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--backend-store-uri", "sqlite:///mlflow.db"),
            *("--artifacts-destination", "artifacts"),
            *("--host", LOOPBACK),
            *("--port", str(self.port)),
            *("--workers", "1"),
            *("--uvicorn-opts", "--log-level=warning"),
        ]

    def environment(self) -> Mapping[str, str]:
        """Return the environment of the server."""
        # Its job runner is eight processes and 2 GB that nothing here uses.
        return inherited_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
