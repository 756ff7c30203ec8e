"""What an experiment's events tell: since when it is in its state, how long it ran, its trials.

The event log is the dispatcher's only memory: read again after a restart, it says the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from service.experiment import State
from service.ports import Event, JsonObject, Store

__all__ = ["ABSENCE", "COUNTED", "Story", "as_told"]

ABSENCE: Final = "unattended"  # the condition that tells since when and how long nobody looked after it
# Time in these counts towards the wall time: the cluster works for it, or is about to again.
COUNTED: Final = frozenset({State.RUNNING, State.RECOVERING, State.PAUSING})
_EVENTS_A_READ: Final = 1000


@dataclass(kw_only=True)
class Story:
    """A fold of one experiment's events, brought up to date by `read_on`."""

    sequence: int = 0
    since: datetime | None = None  # when it came into its state
    trials: dict[str, JsonObject] = field(default_factory=dict)  # the last told row of each trial
    _state: State | None = None
    _on_cluster_s: float = 0.0
    _absences_s: dict[str, float] = field(default_factory=dict)  # by when they began

    async def read_on(self, store: Store, experiment_id: str) -> None:
        """Take in what happened since the last read."""
        while True:
            events = await store.events(after=self.sequence, experiment_id=experiment_id, limit=_EVENTS_A_READ)
            self._take_in(events)
            if len(events) < _EVENTS_A_READ:
                return

    def time_in_state_s(self, now: datetime) -> float:
        """Return how long it has been in its state."""
        return (now - self.since).total_seconds() if self.since else 0.0

    def time_on_cluster_s(self, now: datetime) -> float:
        """Return how long it has run in all, over attempts, without queues, pauses and absences."""
        return self._on_cluster_s + (self.time_in_state_s(now) if self._state in COUNTED else 0.0)

    def news_of(self, rows: Sequence[Mapping[str, Any]]) -> list[JsonObject]:
        """Return the rows of a trial table that differ from what was told last."""
        return [row for row in map(as_told, rows) if self.trials.get(row["id"]) != row]

    def _take_in(self, events: Iterable[Event]) -> None:
        for event in events:
            self.sequence = event.sequence
            if event.type == "trial":
                self.trials[event.data["id"]] = event.data
            elif event.type == "state":
                self._on_cluster_s = self.time_on_cluster_s(event.at)
                self._state, self.since = State(event.data["state"]), event.at
            elif event.data.get("type") == ABSENCE:
                self._leave_out(event.data["since"], event.data["seconds"])

    def _leave_out(self, since: str, seconds: float) -> None:
        """Count off an absence, or what it is longer than was told before."""
        told_s = self._absences_s.get(since, 0.0)
        if self._state in COUNTED and seconds > told_s:
            self._on_cluster_s -= seconds - told_s
            self._absences_s[since] = seconds


def as_told(row: Mapping[str, Any]) -> JsonObject:
    """Return a trial's row as an event holds it: NaN and infinities, which JSON lacks, are null."""
    return {name: _finite(value) for name, value in row.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return as_told(value)
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
