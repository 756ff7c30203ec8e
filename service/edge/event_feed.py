"""One reader of the event log for all streams: it polls each watched experiment once and wakes its streams.

A stream keeps its own place in the log and reads from there when woken, so nothing is queued for
it here and a slow one costs no memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from service.edge.problems import Problem
from service.errors import StoreUnavailable
from service.ports import Store

__all__ = ["EventFeed"]

POLL_INTERVAL_S: Final = 0.25
MAX_STREAMS: Final = 512  # each holds a socket; past this, watchers are asked to come back

log = structlog.get_logger("service.events")


@dataclass
class _Watched:
    """An experiment that streams watch, and the last event they were woken for."""

    last: int = 0
    streams: set[asyncio.Event] = field(default_factory=set)


class EventFeed:
    """Wakes the streams of an experiment when the database has new events of it."""

    def __init__(
        self, store: Store, *, poll_interval_s: float = POLL_INTERVAL_S, max_streams: int = MAX_STREAMS
    ) -> None:
        self._store = store
        self._poll_interval_s = poll_interval_s
        self._max_streams = max_streams
        self._watched: dict[str, _Watched] = {}
        self._is_wanted = asyncio.Event()
        self.is_closed = False

    @property
    def num_streams(self) -> int:
        """Return how many streams are open."""
        return sum(len(watched.streams) for watched in self._watched.values())

    def ensure_room(self) -> None:
        """Raise Problem 429 where as many streams are open as may be."""
        if self.num_streams >= self._max_streams:
            raise Problem(429, "too_many_streams", f"{self._max_streams} event streams are open; come back later")

    @asynccontextmanager
    async def subscribe(self, experiment_id: str) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set whenever the experiment has news; clear it before reading."""
        news = asyncio.Event()
        streams = self._watched.setdefault(experiment_id, _Watched()).streams
        streams.add(news)
        self._is_wanted.set()
        try:
            yield news
        finally:
            streams.discard(news)
            if not streams:
                self._watched.pop(experiment_id, None)

    def close(self) -> None:
        """Let every stream end, so that none holds up the end of the service; their clients come back."""
        self.is_closed = True
        for watched in self._watched.values():
            for news in watched.streams:
                news.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Poll until `stop` while anyone watches; an unreachable database is waited out."""
        while not stop.is_set():
            if not self._watched:
                self._is_wanted.clear()
                await _first(stop, self._is_wanted)
                continue
            try:
                for experiment_id, watched in list(self._watched.items()):
                    await self._poll(experiment_id, watched)
            except StoreUnavailable:
                log.warning("event_feed_waits_for_database")
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._poll_interval_s)

    async def _poll(self, experiment_id: str, watched: _Watched) -> None:
        found = await self._store.events(after=watched.last, experiment_id=experiment_id)
        if found:
            watched.last = found[-1].sequence
            for news in watched.streams:
                news.set()


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
