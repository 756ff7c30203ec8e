"""Connections that are not answered: who is told what, and when, and that no place is lost by it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, text

from service.errors import StoreUnavailable
from service.store.connections import Connections

pytestmark = pytest.mark.anyio

ANSWER_S = 0.05


@pytest.fixture
def is_over() -> Iterator[threading.Event]:
    """Yield what a silent database waits for."""
    is_over = threading.Event()
    yield is_over
    is_over.set()


@pytest.fixture
async def two(tmp_path: Path, is_over: threading.Event) -> AsyncIterator[Connections]:
    """Yield two connections."""
    engine = create_engine(f"sqlite:///{tmp_path / 'file.db'}")
    connections = Connections(engine, number=2, wait_s=0.2, answer_s=ANSWER_S)
    yield connections
    is_over.set()
    await connections.close()


def one(connection: Connection) -> int:
    return int(connection.execute(text("SELECT 1")).scalar_one())


def be_patient(connections: Connections) -> None:
    """Judge nothing by time from here on: what answers now may take as long as the machine likes."""
    connections._answer_s = None
    connections._wait_s = 60.0


async def is_refused(connections: Connections) -> bool:
    try:
        return await connections.run(one) != 1
    except StoreUnavailable:
        return True


async def test_a_caller_whom_nothing_answers_is_told_while_the_thread_hangs(
    two: Connections, is_over: threading.Event
) -> None:
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await two.run(lambda _: is_over.wait(10))


async def test_while_the_database_is_silent_one_asks_and_the_others_are_told_at_once(
    two: Connections, is_over: threading.Event
) -> None:
    with pytest.raises(StoreUnavailable):
        await two.run(lambda _: is_over.wait(10))
    be_patient(two)
    asks = asyncio.create_task(two.run(lambda _: is_over.wait(10)))
    await asyncio.sleep(0)
    for _ in range(10):
        assert await is_refused(two)
    assert not asks.done()

    is_over.set()

    assert await asks
    assert [await is_refused(two) for _ in range(3)] == [False] * 3
    assert not any(await asyncio.gather(*(is_refused(two) for _ in range(8))))


async def test_an_error_of_a_statement_is_an_answer(two: Connections, is_over: threading.Event) -> None:
    with pytest.raises(StoreUnavailable):
        await two.run(lambda _: is_over.wait(10))
    be_patient(two)
    with pytest.raises(ZeroDivisionError):
        await two.run(lambda _: 1 // 0)
    is_over.set()

    assert not any(await asyncio.gather(*(is_refused(two) for _ in range(8))))


async def test_a_caller_who_leaves_gives_up_no_place_that_its_thread_still_has(
    two: Connections, is_over: threading.Event
) -> None:
    for _ in range(2):
        hanging = asyncio.create_task(two.run(lambda _: is_over.wait(10)))
        await asyncio.sleep(0)
        hanging.cancel()
        await asyncio.wait([hanging])

    with pytest.raises(StoreUnavailable, match="busy"):
        await two.run(one)

    is_over.set()
    be_patient(two)
    assert await two.run(one) == 1


async def test_who_comes_after_the_end_is_told(two: Connections) -> None:
    await two.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await two.run(one)
