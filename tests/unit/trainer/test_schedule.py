from __future__ import annotations

import math

import pytest

from trainer.schedule import learning_rate


def _rates(*, warmup_steps: int, total_steps: int, peak: float = 2.0) -> list[float]:
    return [
        learning_rate(step, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps)
        for step in range(total_steps + 2)
    ]


def test_warm_up_is_linear_and_its_first_update_learns() -> None:
    assert _rates(warmup_steps=4, total_steps=10)[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_a_cosine_falls_from_the_peak_to_zero() -> None:
    rates = _rates(warmup_steps=4, total_steps=10)
    expected = [1 + math.cos(math.pi * k / 6) for k in range(6)]
    assert rates[4:10] == pytest.approx(expected)
    assert rates[10:] == [0.0, 0.0]


def test_without_warm_up_the_cosine_starts_at_once() -> None:
    rates = _rates(warmup_steps=0, total_steps=2)
    assert rates[:2] == pytest.approx([2.0, 1.0])


def test_a_warm_up_as_long_as_the_run_never_falls() -> None:
    assert _rates(warmup_steps=2, total_steps=2)[:2] == [1.0, 2.0]
    assert _rates(warmup_steps=4, total_steps=2)[:2] == [0.5, 1.0]


@pytest.mark.parametrize(("step", "warmup_steps", "total_steps"), [(-1, 0, 1), (0, -1, 1), (0, 0, 0)])
def test_impossible_counts_are_refused(step: int, warmup_steps: int, total_steps: int) -> None:
    with pytest.raises(ValueError, match="total_steps"):
        learning_rate(step, peak=1.0, warmup_steps=warmup_steps, total_steps=total_steps)
