"""The story of one experiment as server-sent events.

`state`, `trial` and `condition` events come from the database in order, each with its sequence as
id, so a client that names the last it saw misses none and sees none twice. `metric` and `log`
events carry no id; a client catches up on them from `/metrics` and `/logs`. The stream ends after
the terminal state, or with the service.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import cache
from typing import Final

from service.edge.deps import Services
from service.edge.event_feed import News, Told
from service.edge.server_sent import comment, server_sent
from service.errors import ExperimentNotFound, StoreUnavailable
from service.experiment import TERMINAL, State
from service.ports import EVENTS_AT_ONCE, ExperimentRecord
from service.views.live_numbers import LiveNumbersFeed

__all__ = ["HEARTBEAT_S", "event_stream"]

HEARTBEAT_S: Final = 15.0
RETRY_S: Final = 0.5  # while the database is out of reach
RECONNECT_MS: Final = 1000


async def _always() -> bool:
    return True


async def event_stream(
    record: ExperimentRecord,
    services: Services,
    live_numbers: LiveNumbersFeed,
    *,
    after: int,
    is_welcome: Callable[[], Awaitable[bool]] = _always,
) -> AsyncGenerator[bytes]:
    """Yield the events behind sequence `after` and everything that follows, until the experiment ends.

    Args:
        record: Whose events.
        services: Where to read.
        live_numbers: Tells of metrics and log lines.
        after: The last event that the client has seen.
        is_welcome: Asked at each heartbeat; the stream of who no longer is ends.
    """
    yield comment("stream of " + record.id, retry_ms=RECONNECT_MS)
    # From the first one on streams that were opened together have their heartbeats apart.
    beat_s = _now_s() + HEARTBEAT_S * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    async with services.feed.subscribe(record.id) as news, live_numbers.follow(record, news) as numbers:
        place = numbers.place
        while not services.feed.is_closed:
            events: Sequence[Told] = ()
            if news.take():
                try:
                    record, events = await _read(record, services, news, after=after)
                except ExperimentNotFound:
                    return  # deleted while it was watched
            if record.state in TERMINAL and events:
                await numbers.complete(record)  # the last numbers come before the state that ends the stream
            if text := b"".join([*numbers.behind(place), *(event.text for event in events)]):
                yield text
            place = numbers.place
            after = events[-1].sequence if events else after
            if record.state in TERMINAL and not news.has_events:
                return
            if not await news.wait(max(0.0, beat_s - _now_s())):
                if not await is_welcome():
                    return
                yield _beat(record.state)
                beat_s = max(beat_s + HEARTBEAT_S, _now_s())


def _now_s() -> float:
    return asyncio.get_running_loop().time()


@cache
def _beat(state: State) -> bytes:
    return server_sent("heartbeat", {"state": state.value})


async def _read(
    record: ExperimentRecord, services: Services, news: News, *, after: int
) -> tuple[ExperimentRecord, Sequence[Told]]:
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
