"""Which service the commands talk to, and the settings they read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from service.errors import SettingsError

if TYPE_CHECKING:
    from service.client import Client
    from service.settings import Settings

__all__ = ["connect", "settings"]


def settings() -> Settings:
    """Return the settings of the environment. Raises SettingsError, which names the variables that are wrong."""
    from pydantic import ValidationError

    from service.settings import Settings, wrong_settings

    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(wrong_settings(error)) from error


def connect(*, retry_for_s: float = 3.0) -> Client:
    """Return a client of `SIMCLR_URL`, else of the service that the settings describe.

    Args:
        retry_for_s: How long to bear with a service that does not answer; a person who mistyped
            an address waits no longer than this.

    Raises:
        SettingsError: If `SIMCLR_URL` is no address, or another setting is wrong.
    """
    from service.client import Client

    if url := os.environ.get("SIMCLR_URL"):
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"SIMCLR_URL={url} has no http://; write http://{url.rpartition('://')[2]}")
        return Client(retry_for_s=retry_for_s)
    return Client(settings().base_url, retry_for_s=retry_for_s)
