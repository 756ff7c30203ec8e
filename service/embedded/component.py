"""A part of the stack as data: how it is started, where it answers, and by what it is recognised."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

__all__ = ["Component", "inherited_environment"]

# Addresses that the caller's shell may hold for other installations; the parts get their own.
_FOREIGN: Final = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


class Component(Protocol):
    """One part of the stack. `command` may choose ports anew; `url` never changes."""

    @property
    def name(self) -> str:
        """Return the word for it on record: ray, mlflow, service."""

    @property
    def title(self) -> str:
        """Return what a person reads."""

    @property
    def url(self) -> str:
        """Return the address that others are given."""

    @property
    def health_url(self) -> str:
        """Return the address that answers 200 while it works."""

    @property
    def ready_url(self) -> str:
        """Return the address that answers 200 once it can be used."""

    @property
    def identity(self) -> str:
        """Return what decides whether a running one can be taken over: version and size."""

    @property
    def working_dir(self) -> Path:
        """Return where it runs; made before it starts."""

    def command(self) -> list[str]:
        """Return the words that start it."""

    def environment(self) -> Mapping[str, str]:
        """Return its whole environment but for the stack's markers."""


def inherited_environment() -> dict[str, str]:
    """Return the caller's environment without the service's settings and foreign addresses.

    Settings may hold secrets, and whatever Ray is started with every job can read.
    """
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("SIMCLR_") and name not in _FOREIGN
    }
    loopback = ",".join(filter(None, (kept.get("NO_PROXY") or kept.get("no_proxy"), "127.0.0.1", "localhost")))
    return kept | {
        "NO_PROXY": loopback,
        "no_proxy": loopback,
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
