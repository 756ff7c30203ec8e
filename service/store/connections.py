"""Transactions in threads: each of them whole, and the errors of a database that cannot do them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import StoreUnavailable

__all__ = ["Connections", "unreachable_is_unavailable"]

Result = TypeVar("Result")

# Statements that the database understood and refused: faults of this program, not of the database.
_REFUSALS: Final = (DataError, IntegrityError, NotSupportedError, ProgrammingError)


class Connections:
    """The connections of an engine, each with a thread, and the queue before them in order of arrival.

    A caller is told within `answer_s` of its turn that the database is silent, though its thread may
    hang on for a while. From then until a transaction is answered again, one caller at a time asks
    and the others are told at once: a frozen server takes neither every thread nor every caller's time.
    """

    def __init__(self, engine: Engine, *, number: int, wait_s: float, answer_s: float | None = None) -> None:
        """Use `number` connections of `engine`; wait `wait_s` for a turn and `answer_s` (None: for ever) after it."""
        self.engine = engine
        self._wait_s = wait_s
        self._answer_s = answer_s
        self._free = asyncio.Semaphore(number)
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="database")
        self._is_silent = False
        self._num_asking = 0  # callers who wait for a turn or an answer
        self._num_asked = 0  # of them, for an answer

    async def run(self, work: Callable[[Connection], Result]) -> Result:
        """Return `work(connection)` of a whole transaction. Raises StoreUnavailable."""
        if self._is_silent and self._num_asking:
            raise _silent()
        self._num_asking += 1
        try:
            await self._turn()
            return await self._answer(self._begin(work))
        finally:
            self._num_asking -= 1

    async def close(self) -> None:
        """Release connections and threads, once the transactions under way have ended."""
        await asyncio.to_thread(self._threads.shutdown)
        self.engine.dispose()

    async def _turn(self) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("The database is busy; try again later.") from error

    async def _answer(self, running: Future[Result]) -> Result:
        self._num_asked += 1
        try:
            async with asyncio.timeout(self._answer_s):
                result = await asyncio.wrap_future(running)
        except TimeoutError as error:
            self._is_silent = True
            raise _silent() from error
        except Exception:
            self._is_silent = False  # an error is an answer
            raise
        finally:
            self._num_asked -= 1
        self._is_silent = False
        return result

    def _begin(self, work: Callable[[Connection], Result]) -> Future[Result]:
        """Start a transaction in a thread; the place is free again when the thread is, whoever still waits."""
        loop = asyncio.get_running_loop()
        if self._is_silent and self._num_asked:
            self._free.release()
            raise _silent()

        def release(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended, and with it all who would come
                loop.call_soon_threadsafe(self._free.release)

        try:
            running = self._threads.submit(copy_context().run, self._transact, work)
        except RuntimeError as error:
            self._free.release()
            raise StoreUnavailable("The database is closed.") from error
        running.add_done_callback(release)
        return running

    def _transact(self, work: Callable[[Connection], Result]) -> Result:
        with unreachable_is_unavailable(), self.engine.begin() as connection:
            return work(connection)


def _silent() -> StoreUnavailable:
    return StoreUnavailable("The database does not answer; try again later.")


@contextmanager
def unreachable_is_unavailable() -> Iterator[None]:
    """Raise StoreUnavailable where the database is out of reach, locked, full or broken."""
    try:
        yield
    except _REFUSALS:
        raise
    except (DBAPIError, PoolTimeout, OSError) as error:
        raise StoreUnavailable("The database does not answer; try again later.") from error
