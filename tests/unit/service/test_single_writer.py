"""Writes that share commits: each gets its own answer, whatever befalls the others."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text

from service.errors import StoreUnavailable
from service.store.single_writer import SingleWriter

pytestmark = pytest.mark.anyio


@pytest.fixture
def is_over() -> Iterator[threading.Event]:
    """Yield what the first group waits for, while others gather behind it."""
    is_over = threading.Event()
    yield is_over
    is_over.set()


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """Return the engine of a file whose rows are checked for their parent at the commit."""
    engine = create_engine(f"sqlite:///{tmp_path / 'file.db'}", pool_size=1, max_overflow=0)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=OFF")  # how fast the disk is decides nothing here

    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE written (number INTEGER PRIMARY KEY)"))
        connection.execute(
            text("CREATE TABLE children (of INTEGER REFERENCES written (number) DEFERRABLE INITIALLY DEFERRED)")
        )
    return engine


class Commits:
    """Counts what it is told of, and fails if asked to."""

    def __init__(self) -> None:
        self.number = 0
        self.fails = False

    def __call__(self) -> None:
        self.number += 1
        if self.fails:
            raise RuntimeError("no room for a checkpoint")


@pytest.fixture
def commits() -> Commits:
    return Commits()


@pytest.fixture
async def writer(engine: Engine, commits: Commits, is_over: threading.Event) -> AsyncIterator[SingleWriter]:
    writer = SingleWriter(engine, wait_s=20, on_commit=commits)
    yield writer
    is_over.set()
    await writer.close()


def writes(number: int) -> Callable[[Connection], int]:
    def write(connection: Connection) -> int:
        connection.execute(text("INSERT INTO written VALUES (:number)"), {"number": number})
        return number

    return write


def fails(error: BaseException) -> Callable[[Connection], int]:
    def write(connection: Connection) -> int:
        connection.execute(text("INSERT INTO written VALUES (-1)"))
        raise error

    return write


def orphan(connection: Connection) -> None:
    connection.execute(text("INSERT INTO children VALUES (-7)"))


def stored(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT number FROM written ORDER BY rowid")))


async def behind(
    writer: SingleWriter, is_over: threading.Event, *works: Callable[[Connection], Any]
) -> list[asyncio.Task[Any]]:
    """Begin writes that gather behind one that takes until `is_over`."""
    first = asyncio.create_task(writer.run(lambda _: is_over.wait(20)))
    await asyncio.sleep(0)
    gathered = [asyncio.create_task(writer.run(work)) for work in works]
    await asyncio.sleep(0)
    return [first, *gathered]


async def outcomes(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    async with asyncio.timeout(10):
        return list(await asyncio.gather(*tasks, return_exceptions=True))


async def test_only_who_failed_is_undone_and_all_the_others_still_share_commits(
    writer: SingleWriter, engine: Engine, is_over: threading.Event
) -> None:
    num_commits: list[object] = []
    event.listen(engine, "commit", num_commits.append)
    error = ValueError("mine")
    works = [*map(writes, range(10)), fails(error), *map(writes, range(10, 20)), fails(error), writes(20)]
    tasks = await behind(writer, is_over, *works)
    is_over.set()

    _, *told = await outcomes(tasks)

    assert told == [*range(10), error, *range(10, 20), error, 20]
    assert stored(engine) == list(range(21))
    assert len(num_commits) == 1 + 3


async def test_who_fails_at_the_commit_fails_alone(
    writer: SingleWriter, engine: Engine, is_over: threading.Event
) -> None:
    tasks = await behind(writer, is_over, writes(1), orphan, writes(2))
    is_over.set()

    _, first, failed, last = await outcomes(tasks)

    assert (first, last, type(failed).__name__) == (1, 2, "IntegrityError")
    assert stored(engine) == [1, 2]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), StopIteration(), GeneratorExit()])
async def test_an_error_of_any_kind_reaches_its_caller_and_keeps_nobody_waiting(
    writer: SingleWriter, engine: Engine, is_over: threading.Event, error: BaseException
) -> None:
    tasks = await behind(writer, is_over, writes(1), fails(error), writes(2))
    is_over.set()

    _, first, failed, last = await outcomes(tasks)

    assert (first, last) == (1, 2)
    assert type(failed) is (RuntimeError if isinstance(error, StopIteration) else type(error))
    assert await writer.run(writes(3)) == 3
    assert stored(engine) == [1, 2, 3]


async def test_an_error_that_is_returned_is_a_result(writer: SingleWriter) -> None:
    error = ValueError("kept in a row")

    assert await writer.run(lambda _: error) is error


async def test_what_fails_after_a_commit_keeps_nobody_waiting(
    writer: SingleWriter, commits: Commits, is_over: threading.Event
) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    commits.fails = True
    tasks = await behind(writer, is_over, writes(1))
    is_over.set()

    assert (await outcomes(tasks))[1] == 1
    assert {type(error) for error in told} == {RuntimeError}  # and it is not lost
    asyncio.get_running_loop().set_exception_handler(None)


async def test_who_comes_after_the_end_is_refused_and_who_came_before_is_served(
    writer: SingleWriter, engine: Engine, is_over: threading.Event
) -> None:
    tasks = await behind(writer, is_over, writes(1))
    closing = asyncio.create_task(writer.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="closed"):
        await writer.run(writes(2))
    is_over.set()
    await closing

    assert (await outcomes(tasks))[1] == 1
    assert stored(engine) == [1]


async def test_any_mixture_of_writes_that_succeed_fail_or_are_given_up_is_answered_each_by_itself(
    writer: SingleWriter, engine: Engine
) -> None:
    chance = random.Random(7)
    wanted: dict[asyncio.Task[Any], int | BaseException] = {}
    given_up: set[asyncio.Task[Any]] = set()
    for number in range(400):
        error = ValueError(number)
        outcome: int | BaseException = number if chance.random() < 0.8 else error
        task = asyncio.create_task(writer.run(writes(number) if outcome == number else fails(error)))
        wanted[task] = outcome
        if chance.random() < 0.2:
            await asyncio.sleep(chance.choice([0, 0, 0.002]))
        if chance.random() < 0.2:
            left = chance.choice(list(wanted))
            if left.cancel():
                given_up.add(left)

    told = dict(zip(wanted, await outcomes(list(wanted)), strict=True))

    kept = {task for task in wanted if task not in given_up}
    assert {told[task] is wanted[task] or told[task] == wanted[task] for task in kept} == {True}
    assert {type(told[task]) for task in given_up} == {asyncio.CancelledError}
    await writer.run(lambda _: None)
    must = {each for task in kept if isinstance(each := wanted[task], int)}
    may = {each for each in wanted.values() if isinstance(each, int)}
    assert must <= set(stored(engine)) <= may
