"""Which experiments this dispatcher holds: claimed when a step begins, and anew while a step takes long.

A part that does not answer may take a whole lease. Then what is left of the step may be another
dispatcher's by now, or have moved on: it is looked at as it is when its turn comes, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from service.dispatch.absences import LEAST_S, tell_absences
from service.ports import ExperimentRecord, Store

__all__ = ["LEASE_S", "Holdings"]

LEASE_S: Final = 15.0  # how long a dispatcher that died keeps others from its experiments


class Holdings:
    """The claimed experiments, as they were when they were claimed last. Raises StoreUnavailable."""

    def __init__(self, *, store: Store, claim: str, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._claim = claim
        self._clock = clock
        self._claimed_at: datetime | None = None
        self._records: dict[str, ExperimentRecord] = {}
        self.queue_of_others: Sequence[ExperimentRecord] = ()  # that they are to start

    async def claim(self) -> Sequence[ExperimentRecord]:
        """Claim what is due and return it, by priority, then age."""
        now = self._clock()
        if self._claimed_at is None or now - self._claimed_at > timedelta(seconds=LEAST_S):
            await tell_absences(self._store, now=now)
        found = await self._store.claim_due(self._claim, now=now, lease_s=LEASE_S, with_queue_of_others=True)
        self._claimed_at = now
        records = [record for record in found if record.claim == self._claim]
        self._records = {record.id: record for record in records}
        self.queue_of_others = [record for record in found if record.claim != self._claim]
        return records

    def update(self, record: ExperimentRecord) -> None:
        """Take in what this dispatcher made of a record since it was claimed."""
        self._records[record.id] = record

    async def current(self, record: ExperimentRecord) -> ExperimentRecord | None:
        """Return what was claimed in this step as it is held now; None where it is another's, or has ended."""
        if self._claimed_at is None or self._clock() - self._claimed_at > timedelta(seconds=LEASE_S / 2):
            await self.claim()  # each of them was held for half a lease at least
        return self._records.get(record.id)
