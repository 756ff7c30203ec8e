"""One answer per step: what was silent once is not asked again until the next step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from service.errors import Unavailable

__all__ = ["Outages"]

T = TypeVar("T")

QUICK_S: Final = 1.0  # a refusal that took longer is as dear as silence


class Outages:
    """Which outside parts have not answered in this step.

    Each call to an absent part costs its whole timeout; with a hundred experiments that would be
    a quarter of an hour. A quick refusal costs nothing and may be due to what was asked for alone:
    the others ask for themselves.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._silent: dict[type[Unavailable], Unavailable] = {}
        self._codes: dict[str, None] = {}  # in the order in which they were met

    @property
    def codes(self) -> list[str]:
        """Return the codes of what was silent or refused a call in this step."""
        return list(self._codes)

    @property
    def num_silent(self) -> int:
        """Return how many parts are asked no more in this step."""
        return len(self._silent)

    def forget(self) -> None:
        """Begin a new step."""
        self._silent.clear()
        self._codes.clear()

    def note(self, error: Unavailable) -> None:
        """Take `error` into `codes`; the part is asked again all the same."""
        self._codes[error.code] = None

    async def ask(self, kind: type[Unavailable], call: Callable[[], Awaitable[T]]) -> T:
        """Return what `call` returns. Raises `kind`, without a call where the part was silent before in this step."""
        if kind in self._silent:
            raise self._silent[kind]
        began_at = self._clock()
        try:
            return await call()
        except kind as error:
            self.note(error)
            if not error.is_refusal or self._clock() - began_at > timedelta(seconds=QUICK_S):
                self._silent[kind] = error
            raise
