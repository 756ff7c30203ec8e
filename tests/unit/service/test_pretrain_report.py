"""What the report of a pretraining says of its numbers."""

from __future__ import annotations

import pytest

from service.views.pretrain_report import _number, _verdict


def test_a_collapsed_h_is_the_first_thing_to_know() -> None:
    assert _verdict(0.2, is_collapsed=True).startswith("h has collapsed")
    assert _verdict(0.2, is_collapsed=False).startswith("The encoder knows more")
    assert _verdict(-0.2, is_collapsed=False).startswith("The encoder does not beat")


@pytest.mark.parametrize(
    ("value", "text"), [(2.0, "2.0000"), (0.0, "0.0000"), (1.24e-14, "1.2e-14"), (-3.5, "-3.5000")]
)
def test_a_small_number_is_not_shown_as_none(value: float, text: str) -> None:
    assert _number(value) == text
