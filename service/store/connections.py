"""Transactions in threads: each of them whole, and the errors of a database that cannot do them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    """The connections of an engine, each with a thread, and the queue before them in order of arrival."""

    def __init__(self, engine: Engine, *, number: int, wait_s: float) -> None:
        self.engine = engine
        self._wait_s = wait_s
        self._free = asyncio.Semaphore(number)
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="database")

    async def run(self, work: Callable[[Connection], Result]) -> Result:
        """Return `work(connection)` of a whole transaction. Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("The database is busy; try again later.") from error
        running = asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, self._transact, work)
        running.add_done_callback(lambda _: self._free.release())
        return await running

    async def close(self) -> None:
        """Release connections and threads, once the transactions under way have ended."""
        await asyncio.to_thread(self._threads.shutdown)
        self.engine.dispose()

    def _transact(self, work: Callable[[Connection], Result]) -> Result:
        with unreachable_is_unavailable(), self.engine.begin() as connection:
            return work(connection)


@contextmanager
def unreachable_is_unavailable() -> Iterator[None]:
    """Raise StoreUnavailable where the database is out of reach, locked, full or broken."""
    try:
        yield
    except _REFUSALS:
        raise
    except (DBAPIError, PoolTimeout, OSError) as error:
        raise StoreUnavailable("The database does not answer; try again later.") from error
