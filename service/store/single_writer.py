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


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What a write returned, or the error that undid it."""

    result: Any = None
    error: BaseException | None = None


class SingleWriter:
    """One connection and one thread for every write, in order of arrival.

    A commit costs a sync of the disk and some changes of threads however much is in it, so what
    arrives during one is committed by the next, together. To its caller each write is a
    transaction of its own all the same: where one of a group fails the group is undone, and done
    again as those before it, it alone, and those behind it. So a write may be called twice, and
    must do nothing but use its connection.
    """

    def __init__(self, engine: Engine, *, wait_s: float, on_commit: Callable[[], None]) -> None:
        """Write through `engine`; nobody waits longer than `wait_s` for a turn; call `on_commit` after each group."""
        self.engine = engine
        self._on_commit = on_commit
        self._wait_s = wait_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._waiting: list[_Write] = []
        self._running: asyncio.Future[list[_Outcome]] | None = None
        self._is_closed = False

    async def run(self, work: Callable[[Connection], Result]) -> Result:
        """Return `work(connection)`, committed by then; an error undoes it. Raises StoreUnavailable."""
        if self._is_closed:
            raise StoreUnavailable("The database is closed.")
        loop = asyncio.get_running_loop()
        write = _Write(work=work, context=copy_context(), answer=loop.create_future())
        self._waiting.append(write)
        patience = loop.call_later(self._wait_s, self._refuse, write)
        try:
            self._go_on()
            result: Result = await write.answer
        finally:
            patience.cancel()
        return result

    async def close(self) -> None:
        """Release connection and thread, once all who wait were served; who comes later is refused."""
        self._is_closed = True
        while self._running is not None:
            await asyncio.wait([self._running])
        await asyncio.to_thread(self._thread.shutdown)
        self.engine.dispose()

    def _refuse(self, write: _Write) -> None:
        if write in self._waiting:
            self._waiting.remove(write)
            _tell(write, _Outcome(error=StoreUnavailable("The database is busy; try again later.")))

    def _go_on(self) -> None:
        """Serve all who wait, unless a group is being served."""
        if self._running is not None:
            return
        group = [write for write in self._waiting if not write.answer.done()]  # done: its caller has left
        self._waiting = []
        if group:
            self._running = asyncio.get_running_loop().run_in_executor(self._thread, self._serve, group)
            self._running.add_done_callback(lambda served: self._answer(group, served))

    def _answer(self, group: Sequence[_Write], served: asyncio.Future[list[_Outcome]]) -> None:
        self._running = None
        try:
            for write, outcome in zip(group, served.result(), strict=True):
                _tell(write, outcome)
            self._on_commit()
        finally:
            self._go_on()  # whatever happened, others wait

    def _serve(self, group: Sequence[_Write]) -> list[_Outcome]:
        """Return what each of `group` returned or raised. Raises nothing."""
        outcomes: list[_Outcome] = []
        while rest := group[len(outcomes) :]:
            done: list[Any] = []
            try:
                self._transact(rest, done)
            except StoreUnavailable as error:
                outcomes += [_Outcome(error=error)] * len(rest)  # none of them would find it otherwise
            except BaseException:  # noqa: BLE001 - whose it was, and what it is, shows where it is done alone
                if len(done) == len(rest):  # it was the commit, for the sake of any of them
                    outcomes += [self._alone(write) for write in rest]
                else:
                    outcomes += [*self._again(rest[: len(done)]), self._alone(rest[len(done)])]
            else:
                outcomes += [_Outcome(result=result) for result in done]
        return outcomes

    def _again(self, group: Sequence[_Write]) -> list[_Outcome]:
        """Serve together what came before the first that failed."""
        done: list[Any] = []
        try:
            self._transact(group, done)
        except BaseException:  # noqa: BLE001 - as above; now they differ from one call to the next
            return [self._alone(write) for write in group]
        return [_Outcome(result=result) for result in done]

    def _alone(self, write: _Write) -> _Outcome:
        done: list[Any] = []
        try:
            self._transact([write], done)
        except StopIteration as error:  # no future takes one
            raised = RuntimeError("a write raised StopIteration")
            raised.__cause__ = error
            return _Outcome(error=raised)
        except BaseException as error:  # noqa: BLE001 - it is its caller's to judge
            return _Outcome(error=error)
        return _Outcome(result=done[0])

    def _transact(self, group: Sequence[_Write], done: list[Any]) -> None:
        """Commit `group` together; `done` fills up with what they return."""
        if not group:
            return
        with unreachable_is_unavailable(), self.engine.begin() as connection:
            for write in group:
                done.append(write.context.run(write.work, connection))  # noqa: PERF401 - `done` says how far it came


def _tell(write: _Write, outcome: _Outcome) -> None:
    if write.answer.done():
        return  # its caller has left; whatever it was is done
    if outcome.error is None:
        write.answer.set_result(outcome.result)
    else:
        write.answer.set_exception(outcome.error)
