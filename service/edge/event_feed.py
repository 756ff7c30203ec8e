"""One reader of the event log for all streams: it asks once for what is new and wakes those it concerns.

A stream keeps its own place in the log and reads from there when woken, so nothing is queued for
it here, a slow one costs no memory, and a quiet one no query. Those woken at one place together
share one reading, and its bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from service.edge.problems import Problem
from service.edge.server_sent import server_sent
from service.errors import StoreUnavailable
from service.experiment import TERMINAL
from service.ports import EVENTS_AT_ONCE, Event, ExperimentRecord, Store
from service.waiting import first_of, happens

__all__ = ["EventFeed", "News", "Told"]

POLL_INTERVAL_S: Final = 0.25
MAX_STREAMS: Final = 512  # each holds a socket; past this, watchers are asked to come back

log = structlog.get_logger("service.events")


@dataclass(frozen=True, slots=True)
class Told:
    """An event as all streams send it."""

    sequence: int
    text: bytes


Reading = tuple[ExperimentRecord, Sequence[Told]]


class News:
    """What one watcher of an experiment is woken by."""

    def __init__(self) -> None:
        self._rings = asyncio.Event()
        self.has_events = True  # nobody knows better before the first reading

    def ring(self, *, has_events: bool) -> None:
        """Wake the watcher; `has_events` where the event log has something for it."""
        self.has_events = self.has_events or has_events
        self._rings.set()

    def take(self) -> bool:
        """Return whether the event log may have something new, and forget it: read behind this."""
        self._rings.clear()
        has_events, self.has_events = self.has_events, False
        return has_events

    async def wait(self, timeout_s: float) -> bool:
        """Wait to be woken; return whether that came in time."""
        return await happens(self._rings, within_s=timeout_s)


class EventFeed:
    """Wakes the watchers of an experiment when the database has new events of it."""

    def __init__(
        self, store: Store, *, poll_interval_s: float = POLL_INTERVAL_S, max_streams: int = MAX_STREAMS
    ) -> None:
        self._store = store
        self._poll_interval_s = poll_interval_s
        self._max_streams = max_streams
        self._watchers: dict[str, set[News]] = {}
        self._is_wanted = asyncio.Event()
        self._num_rings = 0
        self._readings: dict[tuple[str, int, int], asyncio.Future[Reading]] = {}
        self.num_streams = 0  # so many are open
        self.is_closed = False

    def ensure_room(self) -> None:
        """Raise Problem 429 where as many streams are open as may be."""
        if self.num_streams >= self._max_streams:
            raise Problem(429, "too_many_streams", f"{self._max_streams} event streams are open; come back later")

    @asynccontextmanager
    async def subscribe(self, experiment_id: str) -> AsyncIterator[News]:
        """Yield, to a stream, what `watch` does."""
        self.num_streams += 1
        try:
            async with self.watch(experiment_id) as news:
                yield news
        finally:
            self.num_streams -= 1

    @asynccontextmanager
    async def watch(self, experiment_id: str) -> AsyncIterator[News]:
        """Yield what rings whenever the experiment has news; read its events at once, then when it rings."""
        news = News()
        self._watchers.setdefault(experiment_id, set()).add(news)
        self._is_wanted.set()
        try:
            yield news
        finally:
            watchers = self._watchers[experiment_id]
            watchers.discard(news)
            if not watchers:
                del self._watchers[experiment_id]

    async def read(self, experiment_id: str, *, after: int) -> Reading:
        """Return the experiment and its first events behind `after`. Raises ExperimentNotFound, StoreUnavailable."""
        key = (experiment_id, after, self._num_rings)  # what began before a ring may lack what it rang for
        reading = self._readings.get(key)
        if reading is None:
            reading = self._readings[key] = asyncio.ensure_future(self._read(experiment_id, after=after))
            reading.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(reading)

    async def _read(self, experiment_id: str, *, after: int) -> Reading:
        record = await self._store.get(experiment_id)
        events = await self._store.events(after=after, experiment_id=experiment_id, limit=EVENTS_AT_ONCE)
        if record.state not in TERMINAL and any(event.data.get("state") in TERMINAL for event in events):
            record = await self._store.get(experiment_id)  # it ended between the two
        return record, [Told(event.sequence, _text(event)) for event in events]

    def _forget(self, key: tuple[str, int, int], reading: asyncio.Future[Reading]) -> None:
        del self._readings[key]
        if not reading.cancelled():
            reading.exception()  # told to those who wait; they may all have left

    def ring(self, experiment_id: str) -> None:
        """Wake the watchers of an experiment for what no event tells: it was deleted."""
        self._num_rings += 1
        for news in self._watchers.get(experiment_id, ()):
            news.ring(has_events=True)

    def close(self) -> None:
        """Let every stream end, so that none holds up the end of the service; their clients come back."""
        self.is_closed = True
        self._ring_all()

    async def run(self, stop: asyncio.Event) -> None:
        """Poll until `stop` while anyone watches; an unreachable database is waited out."""
        place: int | None = None
        while not stop.is_set():
            if not self._watchers:
                place = None
                self._is_wanted.clear()
                await first_of(stop, self._is_wanted)
                continue
            try:
                place = await self._begin() if place is None else await self._poll(place)
            except StoreUnavailable:
                log.warning("event_feed_waits_for_database")
            await happens(stop, within_s=self._poll_interval_s)

    async def _begin(self) -> int:
        """Return the end of the log; those who watch already may have read before it was known."""
        place = await self._store.newest_sequence()
        self._ring_all()
        return place

    async def _poll(self, place: int) -> int:
        found = await self._store.events(after=place, limit=EVENTS_AT_ONCE)
        for experiment_id in {event.experiment_id for event in found}:
            self.ring(experiment_id)
        return found[-1].sequence if found else place

    def _ring_all(self) -> None:
        for experiment_id in self._watchers:
            self.ring(experiment_id)


def _text(event: Event) -> bytes:
    data = {"sequence": event.sequence, "experiment_id": event.experiment_id, "at": event.at.isoformat(), **event.data}
    return server_sent(event.type, data, sequence=event.sequence)
