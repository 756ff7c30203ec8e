"""Death of a process at the k-th call that it makes to the outside, before or after it took effect."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Crash(BaseException):
    """The process is gone; no `except Exception` of it runs."""


class CrashPoints:
    """Counts the calls to all that it wraps and crashes at one of them."""

    def __init__(self) -> None:
        self.calls_left: int | None = None  # until the crash; None: never
        self.num_calls = 0

    def wrap(self, real: T) -> T:
        """Return `real` with a crash point before and one after each call of a method."""
        return cast("T", _Wrapped(real, self))

    def reach(self) -> None:
        self.num_calls += 1
        if self.calls_left is None:
            return
        self.calls_left -= 1
        if self.calls_left <= 0:
            raise Crash


class _Wrapped:
    def __init__(self, real: Any, points: CrashPoints) -> None:
        self._real = real
        self._points = points

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        points = self._points
        if inspect.iscoroutinefunction(method):

            async def call_async(*args: Any, **kwargs: Any) -> Any:
                points.reach()
                result = await method(*args, **kwargs)
                points.reach()
                return result

            return call_async

        def call(*args: Any, **kwargs: Any) -> Any:
            points.reach()
            result = method(*args, **kwargs)
            points.reach()
            return result

        return call
