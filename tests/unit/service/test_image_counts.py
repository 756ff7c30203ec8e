"""Counting images keeps a request for a while only, however much it asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from service.image_counts import ImageCounts

COUNT_S, MANY = 1.0, 12


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold up counts that wait for it; they are given COUNT_S."""
    monkeypatch.setattr("service.image_counts.COUNT_S", COUNT_S)
    monkeypatch.setattr("service.image_counts.BESIDE_S", 0.05)
    gate = threading.Event()
    yield gate
    gate.set()


def test_many_slow_ones_are_waited_for_together(gate: threading.Event) -> None:
    counts, began_s = ImageCounts(), time.monotonic()

    def slow() -> int:
        gate.wait(60)
        return 3

    assert [counts.get(key, slow) for key in range(MANY)] == [None] * MANY
    assert time.monotonic() - began_s < MANY * COUNT_S / 2
    gate.set()
    while counts.get(MANY - 1, slow) is None:
        time.sleep(0.01)
    assert [counts.get(key, slow) for key in range(MANY)] == [3] * MANY


def test_a_fast_one_is_exact_while_a_slow_one_takes_long(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = ImageCounts()
    assert counts.get("slow", lambda: int(gate.wait(60))) is None
    monkeypatch.setattr("service.image_counts.BESIDE_S", COUNT_S)
    assert counts.get("fast", lambda: 5) == 5
