"""What an experiment waits for or lacks, told once when it begins and once when it is over."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Final

from service.errors import ExperimentNotFound, Unavailable
from service.ports import ExperimentRecord, Store

__all__ = ["FAILING", "WAITING", "Conditions", "holds"]

FAILING: Final = "dispatch_failing"
WAITING: Final = "waiting_for_capacity"


class Conditions:
    """Writes conditions, each only where it changes."""

    def __init__(self, *, store: Store, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock

    async def outage(self, record: ExperimentRecord, error: Unavailable) -> None:
        """Say what does not answer, once, in the words it began with."""
        if not _held(record, error.code):
            await self._write(record, error.code, "true", error.message)

    async def set(self, record: ExperimentRecord, type_: str, message: str) -> bool:
        """Say what holds, and again where the words change; return whether it was said now."""
        is_news = _held(record, type_) != [message]
        if is_news:
            await self._write(record, type_, "true", message)
        return is_news

    async def take_back(self, record: ExperimentRecord, *types: str) -> None:
        """Say of conditions that they hold no more, where they did."""
        for type_ in types:
            if _held(record, type_):
                await self._write(record, type_, "false", "")

    async def _write(self, record: ExperimentRecord, type_: str, status: str, message: str) -> None:
        at = self._clock().isoformat()
        with suppress(ExperimentNotFound):  # deleted meanwhile: nobody is left to be told
            await self._store.set_condition(record.id, {"type": type_, "status": status, "message": message, "at": at})


def holds(record: ExperimentRecord, type_: str) -> bool:
    """Return whether a condition holds."""
    return bool(_held(record, type_))


def _held(record: ExperimentRecord, type_: str) -> list[str]:
    """Return the words of the condition that holds, [] if it does not."""
    return [
        condition.get("message", "")
        for condition in record.conditions
        if condition["type"] == type_ and condition["status"] == "true"
    ]
