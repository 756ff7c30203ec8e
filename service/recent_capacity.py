"""What the cluster holds, asked now and then: a request must not cost Ray two requests of its own."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from service.errors import ClusterUnavailable
from service.ports import Capacity, Cluster

__all__ = ["RecentCapacity"]

MAX_AGE_S: Final = 5.0


class RecentCapacity:
    """The cluster's capacity as it was at most `max_age_s` ago."""

    def __init__(self, cluster: Cluster, *, max_age_s: float = MAX_AGE_S) -> None:
        self._cluster = cluster
        self._max_age_s = max_age_s
        self._known: Capacity | None = None
        self._asked_at_s: float | None = None
        self._is_asking = asyncio.Lock()

    async def get(self) -> Capacity | None:
        """Return it, None where the cluster does not answer; that too is asked again only after a while."""
        async with self._is_asking:
            now_s = time.monotonic()
            if self._asked_at_s is None or now_s - self._asked_at_s > self._max_age_s:
                try:
                    self._known = await self._cluster.capacity()
                except ClusterUnavailable:
                    self._known = None
                self._asked_at_s = time.monotonic()
            return self._known
