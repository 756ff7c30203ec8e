"""What the cluster holds, asked now and then: a request must not cost Ray two requests of its own."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

import structlog

from service.errors import ClusterUnavailable
from service.ports import Capacity, Cluster

__all__ = ["RecentCapacity"]

log = structlog.get_logger("service.capacity")

FRESH_S: Final = 5.0  # so old it is asked for anew, beside the request that finds it
MAX_AGE_S: Final = 60.0  # so old no request may rest on it


class RecentCapacity:
    """The cluster's capacity as it was a moment ago; only a caller who is the first for a while waits for it."""

    def __init__(self, cluster: Cluster, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        """Ask nothing yet."""
        self._cluster = cluster
        self._clock_s = clock_s
        self._known: Capacity | None = None
        self._asked_at_s = -math.inf
        self._asking: asyncio.Task[None] | None = None

    async def get(self) -> Capacity | None:
        """Return it, None where the cluster does not answer; that too is asked again only after a while."""
        age_s = self._clock_s() - self._asked_at_s
        if age_s > FRESH_S and self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        if age_s > MAX_AGE_S and self._asking is not None:
            await asyncio.shield(self._asking)  # others may wait for it too
        return self._known

    async def _ask(self) -> None:
        try:
            self._known = await self._cluster.capacity()
        except ClusterUnavailable:
            self._known = None
        except Exception:  # an answer that cannot be read: a request goes without, and must not rest on an old one
            log.exception("capacity_not_read")
            self._known = None
        finally:
            self._asked_at_s = self._clock_s()
            self._asking = None
