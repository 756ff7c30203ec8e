"""The story of one experiment as server-sent events.

`state`, `trial` and `condition` events come from the database in order, each with its sequence as
id, so a client that names the last it saw misses none and sees none twice. `metric` and `log`
events carry no id; a client catches up on them from `/metrics` and `/logs`. The stream ends after
the terminal state, or with the service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from fastapi.sse import ServerSentEvent

from service.edge.deps import Services
from service.errors import ExperimentNotFound, StoreUnavailable
from service.experiment import TERMINAL
from service.ports import Event, ExperimentRecord
from service.views.live_numbers import LiveNumbers

__all__ = ["HEARTBEAT_S", "event_stream"]

HEARTBEAT_S: Final = 15.0
TICK_S: Final = 0.5  # how late a metric or log line may be noticed
RECONNECT_MS: Final = 1000


async def event_stream(record: ExperimentRecord, services: Services, *, after: int) -> AsyncIterator[ServerSentEvent]:
    """Yield the events behind sequence `after` and everything that follows, until the experiment ends."""
    numbers = LiveNumbers(services, is_late=record.attempt > 0)
    heartbeat_due_s = time.monotonic() + HEARTBEAT_S
    yield ServerSentEvent(comment="stream of " + record.id, retry=RECONNECT_MS)
    async with services.feed.subscribe(record.id) as news:
        while not services.feed.is_closed:
            news.clear()
            try:
                record = await services.store.get(record.id)
                events = await services.store.events(after=after, experiment_id=record.id)
            except ExperimentNotFound:
                return  # deleted while it was watched
            except StoreUnavailable:
                events = []
            is_over = record.state in TERMINAL
            # The last numbers come before the state that ends the stream.
            async for sse in numbers.poll(record, is_last=is_over and bool(events)):
                yield sse
            for event in events:
                after = event.sequence
                yield _told(event)
            if events:
                continue
            if is_over:
                return
            if time.monotonic() >= heartbeat_due_s:
                heartbeat_due_s = time.monotonic() + HEARTBEAT_S
                yield ServerSentEvent(event="heartbeat", data={"state": record.state.value})
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), TICK_S)


def _told(event: Event) -> ServerSentEvent:
    data = {"sequence": event.sequence, "experiment_id": event.experiment_id, "at": event.at.isoformat(), **event.data}
    return ServerSentEvent(event=event.type, id=str(event.sequence), data=data)
