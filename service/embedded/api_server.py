"""The service itself as the supervisor's child: the only part that dies with it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from service.embedded.component import inherited_environment
from service.embedded.processes import PARENT_PID
from service.settings import Settings

__all__ = ["ApiServer", "settings_environment"]


@dataclass(frozen=True, kw_only=True)
class ApiServer:
    """`python -m service` with the addresses of the parts that it rests on."""

    settings: Settings  # complete: ray_address and mlflow_uri are set
    arguments: tuple[str, ...] = ("-m", "service")
    name: str = "service"
    title: str = "Service"

    @property
    def url(self) -> str:
        """Return the address of the API."""
        return self.settings.base_url

    @property
    def health_url(self) -> str:
        """Return what answers while the process works, whatever it rests on."""
        return f"{self.url}/livez"

    @property
    def ready_url(self) -> str:
        """Return what answers once database, Ray and MLflow answer too."""
        return f"{self.url}/readyz"

    @property
    def identity(self) -> str:
        """Return the address: it is never taken over, always replaced."""
        return self.url

    @property
    def working_dir(self) -> Path:
        """Return the state directory."""
        return self.settings.home_dir

    def command(self) -> list[str]:
        """Return the words that start it."""
        return [sys.executable, *self.arguments]

    def environment(self) -> Mapping[str, str]:
        """Return the environment: the settings in force, and whose death it shares."""
        return (
            inherited_environment()
            | settings_environment(self.settings)
            | {PARENT_PID: str(os.getpid()), "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}
        )


def settings_environment(settings: Settings) -> dict[str, str]:
    """Return the variables that make `Settings()` equal to `settings` in another process and directory."""
    absolute = {"home": settings.home_dir}
    values = {name: absolute.get(name, value) for name, value in settings if value is not None}
    return {f"SIMCLR_{name.upper()}": _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return json.dumps(value) if isinstance(value, tuple) else str(value)
