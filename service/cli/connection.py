"""Which service the commands talk to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.client import Client

__all__ = ["connect"]


def connect(*, retry_for_s: float = 3.0) -> Client:
    """Return a client of `SIMCLR_URL`, else of the service that the settings describe.

    Args:
        retry_for_s: How long to bear with a service that does not answer; a person who mistyped
            an address waits no longer than this.
    """
    from service.client import Client

    if os.environ.get("SIMCLR_URL"):
        return Client(retry_for_s=retry_for_s)
    from service.settings import Settings

    return Client(Settings().base_url, retry_for_s=retry_for_s)
