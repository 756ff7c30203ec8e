"""Waits end when they are cancelled, whatever happens at the same moment."""

from __future__ import annotations

import asyncio

import pytest

from service.waiting import first_of, happens

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("num_turns", range(4))
async def test_a_wait_that_is_cancelled_as_its_event_comes_is_cancelled(num_turns: int) -> None:
    event = asyncio.Event()
    num_rounds = 0

    async def wait_for_ever() -> None:
        nonlocal num_rounds
        while True:
            num_rounds += 1
            event.clear()
            await happens(event, within_s=60)

    waiting = asyncio.create_task(wait_for_ever())
    await asyncio.sleep(0.01)
    event.set()
    for _ in range(num_turns):
        await asyncio.sleep(0)
    waiting.cancel()
    done, _ = await asyncio.wait([waiting], timeout=30)

    assert done
    assert waiting.cancelled()
    assert num_rounds in (1, 2)


async def test_a_wait_says_whether_its_event_came() -> None:
    event = asyncio.Event()

    assert not await happens(event, within_s=0.001)
    assert not await happens(event, within_s=-1)
    event.set()
    assert await happens(event, within_s=60)
    assert await happens(event, within_s=-1)


async def test_the_first_of_two_events_ends_a_wait_and_so_does_its_time() -> None:
    early, late = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().call_later(0.001, early.set)

    await asyncio.wait_for(first_of(late, early), 60)
    assert early.is_set()
    await asyncio.wait_for(first_of(late, within_s=0.001), 60)
    assert not late.is_set()
