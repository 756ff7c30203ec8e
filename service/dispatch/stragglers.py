"""Jobs whose experiment needs them no more and that are still there.

Such a job said its last word and does not leave, or its experiment was settled while Ray did not
answer. It holds what others wait for, so it gets a while to leave by itself, and then Ray ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from service.errors import ClusterUnavailable
from service.outage import Outages
from service.ports import Cluster

__all__ = ["EXIT_GRACE_S", "Stragglers"]

EXIT_GRACE_S: Final = 60.0  # to leave Ray after the last word


class Stragglers:
    """Remembers since when each of them is seen; a new process counts anew. Raises ClusterUnavailable."""

    def __init__(self, *, cluster: Cluster, outages: Outages, clock: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._outages = outages
        self._clock = clock
        self._since: dict[str, datetime] = {}

    def knows(self, job: str) -> bool:
        """Return whether the job was seen as one that should leave."""
        return job in self._since

    async def hurry(self, job: str) -> bool:
        """Let Ray end the job if its time to leave is over; return whether it was."""
        since = self._since.setdefault(job, self._clock())
        if self._clock() - since <= timedelta(seconds=EXIT_GRACE_S):
            return False
        await self._outages.ask(ClusterUnavailable, lambda: self._cluster.stop(job))
        return True

    async def is_gone(self, job: str) -> bool:
        """Return whether the job has ended or is unknown; hurry it if not."""
        observation = await self._outages.ask(ClusterUnavailable, lambda: self._cluster.observe(job))
        if observation.status.is_living:
            await self.hurry(job)
            return False
        self.forget(job)
        return True

    def forget(self, job: str) -> None:
        self._since.pop(job, None)
