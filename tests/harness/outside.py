"""The line between a control plane in a process of its own and the world that lives on without it.

Each call of the process is one frame, each answer another, and with it comes the time: the
process has no clock but the world's.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from service.experiment import Verb
from service.ports import Idempotency, NewExperiment
from tests.fakes.clock import Clock

__all__ = ["Ask", "Call", "Line", "Outside", "Part", "Places", "Submit", "Wish"]

_LENGTH: Final = struct.Struct("!I")


@dataclass(frozen=True, kw_only=True)
class Places:
    """What a control plane is started with."""

    claim: str  # its name in the database
    database: str  # SQLAlchemy address
    home: str
    storage: str  # a directory
    port: int  # where the world answers
    stops_before: str = ""  # the move, `SOURCE TARGET`, before whose write it stops itself, once


@dataclass(frozen=True, kw_only=True)
class Submit:
    """A client's submission; it is made again, with the same key, until it is answered."""

    number: int
    new: NewExperiment
    idempotency: Idempotency


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A client's verb."""

    number: int
    experiment_id: str
    verb: Verb


Wish = Submit | Ask


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of the process to a part of the world."""

    part: str
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Line:
    """Objects in frames over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: object) -> None:
        data = pickle.dumps(message)
        self._writer.write(_LENGTH.pack(len(data)) + data)
        await self._writer.drain()

    async def receive(self) -> Any:
        """Return the next object. Raises IncompleteReadError, or ConnectionError, where the other is gone."""
        (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        return pickle.loads(await self._reader.readexactly(length))  # noqa: S301 - both ends are ours

    def close(self) -> None:
        self._writer.close()


class Outside:
    """The world as the process sees it: one call at a time, and a clock that moves with its answers."""

    def __init__(self, line: Line) -> None:
        self.clock = Clock()
        self._line = line
        self._turn = asyncio.Lock()

    async def call(self, part: str, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Return what the world answers."""
        async with self._turn:
            await self._line.send(Call(part=part, name=name, args=args, kwargs=kwargs))
            self.clock.now, result = await self._line.receive()
        return result


class Part:
    """A part of the world; each of its methods is a coroutine."""

    def __init__(self, outside: Outside, name: str) -> None:
        self._outside = outside
        self._name = name

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._outside.call, self._name, name)
