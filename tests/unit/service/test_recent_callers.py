"""Who is remembered for the time in which the database cannot say who calls."""

from __future__ import annotations

import pytest

from service.edge.auth import Caller
from service.edge.recent_callers import MEMORY_S, MOST_REMEMBERED, RecentCallers
from service.ports import Role

ADMIN = Caller(owner="ada", role=Role.ADMIN)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("secret", ["simclr_x", None])
def test_a_caller_is_recalled_as_a_viewer_until_its_time_is_over(secret: str | None) -> None:
    clock = Clock()
    callers = RecentCallers(clock_s=clock)
    assert callers.recall(secret) is None
    callers.remember(secret, ADMIN)
    clock.now_s += MEMORY_S - 1
    assert callers.recall(secret) == Caller(owner="ada", role=Role.VIEWER)
    assert callers.recall("simclr_y") is None
    clock.now_s += 2
    assert callers.recall(secret) is None


def test_who_was_refused_since_is_forgotten() -> None:
    callers = RecentCallers()
    callers.remember("simclr_x", ADMIN)
    callers.forget("simclr_x")
    assert callers.recall("simclr_x") is None


def test_of_too_many_the_longest_unseen_is_forgotten() -> None:
    callers = RecentCallers()
    for number in range(MOST_REMEMBERED + 1):
        callers.remember(str(number), ADMIN)
        callers.remember("0", ADMIN)
    assert callers.recall("0")
    assert callers.recall("1") is None
