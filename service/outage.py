"""One answer per step: what did not answer once is not asked again until the next step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from service.errors import Unavailable

__all__ = ["Outages"]

T = TypeVar("T")


class Outages:
    """Which outside parts have not answered in this step.

    Each call to an absent part costs its whole timeout; with a hundred experiments that would be
    a quarter of an hour, and the lease on them would be gone.
    """

    def __init__(self) -> None:
        self.seen: dict[type[Unavailable], Unavailable] = {}

    def forget(self) -> None:
        """Begin a new step."""
        self.seen.clear()

    async def ask(self, kind: type[Unavailable], call: Callable[[], Awaitable[T]]) -> T:
        """Return what `call` returns. Raises `kind`, without a call where one raised it before in this step."""
        if kind in self.seen:
            raise self.seen[kind]
        try:
            return await call()
        except kind as error:
            self.seen[kind] = error
            raise
