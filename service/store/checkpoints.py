"""Moving SQLite's log into its file, beside the writer who would otherwise do it within a commit."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from sqlalchemy import Engine

from service.errors import StoreUnavailable
from service.store.connections import unreachable_is_unavailable

__all__ = ["Checkpoints"]

COMMITS_BETWEEN: Final = 32  # a few MB of log


class Checkpoints:
    """Copies what was committed into the file now and then, in a thread of its own; writers and readers go on.

    A checkpoint syncs the file and the log, tens of milliseconds for whoever is in line behind it.
    The writer makes one itself where these do not keep up (`wal_autocheckpoint` of its connection):
    it alone can begin the log anew.
    """

    def __init__(self, engine: Engine) -> None:
        """Use a connection of `engine`, which must not be the writer's."""
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database-log")
        self._num_commits = 0
        self._running: asyncio.Future[None] | None = None

    def count_commit(self) -> None:
        """Begin a checkpoint if it is time for one and none is under way."""
        self._num_commits += 1
        if self._num_commits >= COMMITS_BETWEEN and (self._running is None or self._running.done()):
            self._num_commits = 0
            self._running = asyncio.get_running_loop().run_in_executor(self._thread, self._move)

    async def close(self) -> None:
        """Release the connection, once a checkpoint under way has ended."""
        await asyncio.to_thread(self._thread.shutdown)
        self._engine.dispose()

    def _move(self) -> None:
        # What keeps it from it (a full disk) meets the writer too, and there someone is told.
        with suppress(StoreUnavailable), unreachable_is_unavailable(), self._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").all()
