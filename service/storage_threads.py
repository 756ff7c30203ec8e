"""Threads in which storage is asked: one that does not answer holds up those who ask it, for a while, and nobody else.

A bucket out of reach, or a directory of a dead host, keeps a thread for minutes. In the pool that
all of asyncio shares they would soon be all of it, and the end of the process would wait for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, Final, TypeVar

from service.errors import BlobsUnavailable

__all__ = ["ANSWER_S", "StorageThreads"]

NUM_THREADS: Final = 8
ANSWER_S: Final = 10.0
IDLE_S: Final = 10.0  # then a thread ends

Result = TypeVar("Result")


class StorageThreads:
    """A few threads, started when they are needed; the process ends without them."""

    def __init__(self, *, number: int = NUM_THREADS, idle_s: float = IDLE_S) -> None:
        """Start none yet; one that has nothing to do for `idle_s` ends."""
        self._number = number
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._num_threads = 0
        self._num_idle = 0

    async def run(self, call: Callable[[], Result], *, within_s: float | None = ANSWER_S) -> Result:
        """Return `call()`. Raises BlobsUnavailable after `within_s`, a thread's turn included, and for an OSError.

        That is a refusal, unless it says that a time was up.
        """
        future = self.begin(call)
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.wrap_future(future)  # left to itself when the time is up
        except OSError as error:  # a TimeoutError is one
            message = f"storage does not answer: {str(error) or type(error).__name__}"
            raise BlobsUnavailable(message, is_refusal=not isinstance(error, TimeoutError)) from error

    def begin(self, call: Callable[[], Result]) -> Future[Result]:
        """Return what will be `call()`, or what it raised."""
        future: Future[Result] = Future()
        context = copy_context()
        self._put(future, lambda: context.run(call))
        return future

    def _put(self, future: Future[Any], call: Callable[[], Any]) -> None:
        with self._changed:
            self._calls.append((future, call))
            if self._num_idle >= len(self._calls):
                self._changed.notify()
            elif self._num_threads < self._number:
                self._num_threads += 1
                threading.Thread(target=self._work, name="storage", daemon=True).start()

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            _answer(*taken)
            del taken  # or a thread that waits would keep the answer, and all that it refers to

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """Return the next call; None if there was none for so long that this thread shall end."""
        with self._changed:
            self._num_idle += 1
            self._changed.wait_for(lambda: self._calls, timeout=self._idle_s)
            self._num_idle -= 1
            if self._calls:
                return self._calls.popleft()
            self._num_threads -= 1
            return None


def _answer(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return  # nobody waits for it any more
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - it is its caller's to judge
        future.set_exception(error)
    else:
        future.set_result(result)
