"""A client that takes nothing: how long it is waited for, and what becomes of its connection.

What of a stream it has not read lies in buffers of a fixed size, so waiting costs time, not memory. A
whole answer lies there as large as it is, for as long as its client takes some of it now and then; an
encoder, of which parts are sent, as long as each part is taken in time.
An event stream leaves its reason there, for a client that wakes up in time to read it; what is left
of any other answer is no use to anyone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

__all__ = ["CONNECTION", "LAST_READ_S", "SLOW_CLIENT_TIMEOUT_S", "HeldConnection", "SlowClient", "connection_of"]

SLOW_CLIENT_TIMEOUT_S: Final = 30.0  # a client that takes no byte for so long is dropped
LAST_READ_S: Final = 60.0  # in which it may still read why
CONNECTION: Final = "connection"  # in a request's state, a weak reference to it


class SlowClient(Exception):
    """The client took nothing for SLOW_CLIENT_TIMEOUT_S; its connection is closed."""


class HeldConnection(Protocol):
    """A connection whose client keeps it from being written to."""

    def let_go(self, *, within_s: float) -> bool:
        """Take what is sent now as the last, client or no client, and close when it is read or the time is up.

        Return False, and close at once, where the answer has not begun.
        """

    def give_up(self) -> None:
        """Close at once, unless the answer is whole."""


def connection_of(scope: Mapping[str, Any]) -> HeldConnection | None:
    """Return the connection of a request; None where it came over none, as in a program's own test."""
    reference: Callable[[], HeldConnection | None] = scope.get("state", {}).get(CONNECTION, lambda: None)
    return reference()
