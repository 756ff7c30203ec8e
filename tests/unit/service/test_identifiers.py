"""Ids of experiments sort by time and never repeat."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from service.edge.identifiers import ExperimentIds, new_experiment_id

SHAPE = re.compile(r"exp_[0-7][0-9a-hjkmnp-tv-z]{25}")


def ids_at(*times_ms: int) -> list[str]:
    clock = iter(times_ms)
    ids = ExperimentIds(clock_ns=lambda: next(clock) * 1_000_000)
    return [ids() for _ in times_ms]


def test_an_id_is_a_lower_case_ulid_with_a_prefix() -> None:
    assert SHAPE.fullmatch(new_experiment_id())


def test_ids_sort_by_the_time_they_were_made() -> None:
    made = ids_at(1, 2, 1_000, 1_800_000_000_000)
    assert made == sorted(made)


def test_the_time_stands_in_the_first_ten_digits() -> None:
    (made,) = ids_at(32**9 + 5)
    assert made[4:14] == "1000000005"


def test_ids_ascend_where_the_clock_stands_still() -> None:
    made = ids_at(*[7] * 5_000)
    assert made == sorted(set(made))


def test_ids_ascend_where_the_clock_moves_back() -> None:
    made = ids_at(5_000, 4_000, 0, 4_999, 5_001)
    assert made == sorted(set(made))


def test_two_processes_with_the_same_past_do_not_meet() -> None:
    one, two = ExperimentIds(clock_ns=lambda: 0), ExperimentIds(clock_ns=lambda: 0)
    two._last = one._last = 1 << 100  # both see a clock that was set back after a fork
    assert {one() for _ in range(100)}.isdisjoint({two() for _ in range(100)})


def test_threads_never_get_the_same_id() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_experiment_id(), range(2_000)))
    assert len(set(made)) == 2_000
