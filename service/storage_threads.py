"""Threads in which storage is asked: one that does not answer holds up those who ask it, for a while, and nobody else.

A bucket out of reach, or a directory of a dead host, keeps a thread for minutes. In the pool that
all of asyncio shares they would soon be all of it, and the end of the process would wait for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from service.errors import BlobsUnavailable

__all__ = ["ANSWER_S", "StorageThreads"]

NUM_THREADS: Final = 8
ANSWER_S: Final = 10.0

Result = TypeVar("Result")


class StorageThreads:
    """A few threads, started when they are needed; the process ends without them."""

    def __init__(self, *, number: int = NUM_THREADS) -> None:
        """Start none yet."""
        self._number = number
        self._num_started = 0
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    async def run(self, call: Callable[[], Result], *, within_s: float = ANSWER_S) -> Result:
        """Return `call()`. Raises BlobsUnavailable for an OSError, and after `within_s`, a thread's turn included."""
        future: Future[Result] = Future()
        context = copy_context()
        self._calls.put((future, lambda: context.run(call)))
        if self._num_started < self._number:
            self._num_started += 1
            threading.Thread(target=self._work, name=f"storage-{self._num_started}", daemon=True).start()
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.wrap_future(future)  # left to itself when the time is up
        except OSError as error:  # a TimeoutError is one
            raise BlobsUnavailable(f"storage does not answer: {str(error) or type(error).__name__}") from error

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue  # nobody waits for it any more
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - it is its caller's to judge
                future.set_exception(error)
            else:
                future.set_result(result)
