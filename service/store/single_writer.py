"""The one writer of a SQLite file: all who wait for a commit share the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from service.errors import StoreUnavailable
from service.store.connections import unreachable_is_unavailable

__all__ = ["SingleWriter"]

Result = TypeVar("Result")


@dataclass(eq=False, kw_only=True)
class _Write:
    work: Callable[[Connection], Any]
    context: Context
    answer: asyncio.Future[Any]


class SingleWriter:
    """One connection and one thread for every write, in order of arrival.

    A commit costs a sync of the disk and some changes of threads however much is in it, so what
    arrives during one is committed by the next, together. To its caller each write is a
    transaction of its own all the same: where one of a group fails the group is undone, and each
    is done again alone. So a write may be called twice, and must do nothing but use its connection.
    """

    def __init__(self, engine: Engine, *, wait_s: float, on_commit: Callable[[], None]) -> None:
        """Write through `engine`; nobody waits longer than `wait_s` for a turn; call `on_commit` after each group."""
        self.engine = engine
        self._on_commit = on_commit
        self._wait_s = wait_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._waiting: list[_Write] = []
        self._running: asyncio.Future[list[Any]] | None = None

    async def run(self, work: Callable[[Connection], Result]) -> Result:
        """Return `work(connection)`, committed by then; an error undoes it. Raises StoreUnavailable."""
        loop = asyncio.get_running_loop()
        write = _Write(work=work, context=copy_context(), answer=loop.create_future())
        self._waiting.append(write)
        patience = loop.call_later(self._wait_s, self._refuse, write)
        self._go_on()
        try:
            result: Result = await write.answer
        finally:
            patience.cancel()
        return result

    async def close(self) -> None:
        """Release connection and thread, once all who wait were served."""
        while self._running is not None:
            await asyncio.wait([self._running])
        await asyncio.to_thread(self._thread.shutdown)
        self.engine.dispose()

    def _refuse(self, write: _Write) -> None:
        if write in self._waiting:
            self._waiting.remove(write)
            write.answer.set_exception(StoreUnavailable("The database is busy; try again later."))

    def _go_on(self) -> None:
        """Serve all who wait, unless a group is being served."""
        if self._running is not None:
            return
        group = [write for write in self._waiting if not write.answer.done()]  # done: its caller has left
        self._waiting = []
        if group:
            self._running = asyncio.get_running_loop().run_in_executor(self._thread, self._serve, group)
            self._running.add_done_callback(lambda served: self._answer(group, served))

    def _answer(self, group: Sequence[_Write], served: asyncio.Future[list[Any]]) -> None:
        self._running = None
        for write, outcome in zip(group, served.result(), strict=True):
            if write.answer.done():
                continue  # its caller has left, and it was done
            if isinstance(outcome, Exception):
                write.answer.set_exception(outcome)
            else:
                write.answer.set_result(outcome)
        self._on_commit()
        self._go_on()

    def _serve(self, group: Sequence[_Write]) -> list[Any]:
        """Return what each of `group` returned or raised."""
        if len(group) > 1:
            try:
                return self._transact(group)
            except StoreUnavailable as error:
                return [error] * len(group)  # none of them would find it otherwise
            except Exception:  # noqa: BLE001, S110 - whose it was, and what it is, shows below
                pass
        return [self._alone(write) for write in group]

    def _alone(self, write: _Write) -> Any:
        try:
            return self._transact([write])[0]
        except Exception as error:  # noqa: BLE001 - it is its caller's to judge
            return error

    def _transact(self, group: Sequence[_Write]) -> list[Any]:
        with unreachable_is_unavailable(), self.engine.begin() as connection:
            return [write.context.run(write.work, connection) for write in group]
