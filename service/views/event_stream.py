"""The story of one experiment as server-sent events.

`state`, `trial` and `condition` events come from the database in order, each with its sequence as
id, so a client that names the last it saw misses none and sees none twice. `metric` and `log`
events carry no id; a client catches up on them from `/metrics` and `/logs`. The stream ends after
the terminal state, or with the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from fastapi.sse import ServerSentEvent

from service.edge.deps import Services
from service.edge.event_feed import News
from service.errors import ExperimentNotFound, StoreUnavailable
from service.experiment import TERMINAL
from service.ports import EVENTS_AT_ONCE, Event, ExperimentRecord
from service.views.live_numbers import LiveNumbersFeed

__all__ = ["HEARTBEAT_S", "event_stream"]

HEARTBEAT_S: Final = 15.0
RETRY_S: Final = 0.5  # while the database is out of reach
RECONNECT_MS: Final = 1000


async def event_stream(
    record: ExperimentRecord, services: Services, live_numbers: LiveNumbersFeed, *, after: int
) -> AsyncIterator[ServerSentEvent]:
    """Yield the events behind sequence `after` and everything that follows, until the experiment ends."""
    yield ServerSentEvent(comment="stream of " + record.id, retry=RECONNECT_MS)
    async with services.feed.subscribe(record.id) as news, live_numbers.follow(record, news) as numbers:
        place = numbers.place
        while not services.feed.is_closed:
            events: Sequence[Event] = ()
            if news.take():
                try:
                    record, events = await _read(record, services, news, after=after)
                except ExperimentNotFound:
                    return  # deleted while it was watched
            if record.state in TERMINAL and events:
                await numbers.complete(record)  # the last numbers come before the state that ends the stream
            for sse in numbers.behind(place):
                yield sse
            place = numbers.place
            for event in events:
                after = event.sequence
                yield _told(event)
            if record.state in TERMINAL and not news.has_events:
                return
            if not await news.wait(HEARTBEAT_S):
                yield ServerSentEvent(event="heartbeat", data={"state": record.state.value})


async def _read(
    record: ExperimentRecord, services: Services, news: News, *, after: int
) -> tuple[ExperimentRecord, Sequence[Event]]:
    """Return the experiment and its events behind `after`; where more are due, `news` says so."""
    try:
        record, events = await services.feed.read(record.id, after=after)
    except StoreUnavailable:
        await asyncio.sleep(RETRY_S)
        events = []
        news.ring(has_events=True)
    if len(events) == EVENTS_AT_ONCE:
        news.ring(has_events=True)
    return record, events


def _told(event: Event) -> ServerSentEvent:
    data = {"sequence": event.sequence, "experiment_id": event.experiment_id, "at": event.at.isoformat(), **event.data}
    return ServerSentEvent(event=event.type, id=str(event.sequence), data=data)
