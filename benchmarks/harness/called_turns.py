"""Turns for contenders that something else starts, on whatever host: each calls in, and is told when to work."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from typing import Any, Final, Self, TextIO

__all__ = ["Caller", "TurnTable"]

TIMEOUT_S: Final = 180.0


@dataclass(kw_only=True)
class Caller:
    """A contender's side; it pickles until it has called."""

    address: tuple[str, int]
    name: str
    _line: TextIO | None = field(default=None, init=False)

    def over(self, report: dict[str, Any]) -> bool:
        """Report the turn that ends here and return when the next begins; False when none will follow."""
        if self._line is None:
            self._line = socket.create_connection(self.address).makefile("rw")
        self._line.write(json.dumps({"name": self.name, **report}) + "\n")
        self._line.flush()
        return bool(self._line.readline())


class TurnTable:
    """The other side: it knows who has called, and lets one work at a time."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT_S)
        self._lines: dict[str, TextIO] = {}
        self.address: tuple[str, int] = self._listener.getsockname()[:2]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines.values():
            line.close()
        self._listener.close()

    def await_callers(self, count: int) -> None:
        """Return once so many contenders have called; what they report is their warm-up."""
        while len(self._lines) < count:
            connection, _ = self._listener.accept()
            connection.settimeout(TIMEOUT_S)
            with connection:
                line = connection.makefile("rw")
            self._lines[json.loads(line.readline())["name"]] = line

    def take_turn(self, name: str) -> dict[str, Any]:
        """Let one work, and return what it reports.

        Raises:
            RuntimeError: If it has ended.
        """
        line = self._lines[name]
        line.write("\n")
        line.flush()
        report = line.readline()
        if not report:
            raise RuntimeError(f"{name} has ended")
        answer: dict[str, Any] = json.loads(report)
        return answer
