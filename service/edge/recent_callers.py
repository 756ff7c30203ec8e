"""Who was let in lately, for the minutes in which the database cannot say who calls."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from service.edge.auth import Caller, hash_secret
from service.ports import Role

__all__ = ["RecentCallers"]

MEMORY_S: Final = 300.0
MOST_REMEMBERED: Final = 1024


class RecentCallers:
    """Callers by the digest of their secret, each for MEMORY_S after the database last knew it.

    `/metrics` must answer above all while the database is away. What else answers without it holds
    no experiment; a recalled caller is a viewer, so that a token revoked just before can do no more.
    """

    def __init__(self, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        """Remember nobody yet."""
        self._clock_s = clock_s
        self._seen: OrderedDict[str, tuple[Caller, float]] = OrderedDict()

    def remember(self, secret: str | None, caller: Caller) -> None:
        """Note that this secret (None: no token where none is needed) is the caller's now."""
        digest = hash_secret(secret or "")
        self._seen[digest] = (replace(caller, role=Role.VIEWER), self._clock_s())
        self._seen.move_to_end(digest)
        if len(self._seen) > MOST_REMEMBERED:
            self._seen.popitem(last=False)

    def forget(self, secret: str | None) -> None:
        """Note that this secret is nobody's."""
        self._seen.pop(hash_secret(secret or ""), None)

    def recall(self, secret: str | None) -> Caller | None:
        """Return the caller as a viewer, None where it was not seen lately."""
        caller, seen_at_s = self._seen.get(hash_secret(secret or ""), (None, 0.0))
        return caller if self._clock_s() - seen_at_s < MEMORY_S else None
