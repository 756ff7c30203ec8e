"""What is done now and then so that a service can run for years."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from service.errors import StoreUnavailable
from service.ports import Store
from service.waiting import happens

__all__ = ["Housekeeping"]

PERIOD_S: Final = 3600.0


class Housekeeping:
    """Keeps the database as small as what is in it."""

    def __init__(self, store: Store, *, period_s: float = PERIOD_S) -> None:
        self._store = store
        self._period_s = period_s

    async def run(self, stop: asyncio.Event) -> None:
        """Tidy every `period_s` until `stop`; a database out of reach is tidied next time."""
        while not await happens(stop, within_s=self._period_s):
            with suppress(StoreUnavailable):
                await self._store.tidy()
