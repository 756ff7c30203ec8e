"""Work beside the requests: each loop is restarted when it crashes and ended when the app ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from service.waiting import happens

__all__ = ["keep_running"]

Loop = Callable[[asyncio.Event], Awaitable[None]]

FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0

log = structlog.get_logger("service.background")


async def keep_running(name: str, loop: Loop, stop: asyncio.Event, *, first_backoff_s: float = FIRST_BACKOFF_S) -> None:
    """Run `loop(stop)` until it returns; a crash is logged and it is started again, later each time."""
    backoff_s = first_backoff_s
    while not stop.is_set():
        started_s = asyncio.get_running_loop().time()
        try:
            await loop(stop)
        except Exception:  # whatever it was, experiments need the loop: it must not stay down
            log.exception("loop_crashed", loop=name, restart_in_s=backoff_s)
        else:
            return
        if asyncio.get_running_loop().time() - started_s > MAX_BACKOFF_S:
            backoff_s = first_backoff_s
        await happens(stop, within_s=backoff_s)
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
