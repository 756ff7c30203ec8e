"""Waiting for events, so that a wait that is cancelled ends whatever happens at the same moment.

`asyncio.wait_for` of Python 3.11 gives the result of a future that was done when the cancellation
came, and the cancellation is lost: a loop around it goes on for ever.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

__all__ = ["first_of", "happens"]


async def happens(event: asyncio.Event, *, within_s: float) -> bool:
    """Wait for `event`, at most `within_s` seconds; return whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()


async def first_of(*events: asyncio.Event, within_s: float | None = None) -> None:
    """Wait until one of `events` is set, at most `within_s` seconds (None: for ever)."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
